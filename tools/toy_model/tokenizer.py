"""A byte-level BPE tokenizer in the manner of Llama 3: its pre-tokenizer, its special tokens, its chat form.

Digits are never merged: the model calculates digit by digit, and a figure is copied digit by digit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rig.atomic import write_text
from rig.model.chat_template import Message

VOCABULARY = 2048
POSITIONS = 4096

BEGIN, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
EOM, EOT = "<|eom_id|>", "<|eot_id|>"
SPECIAL = (BEGIN, END, PAD, HEADER, HEADER_END, EOM, EOT, "<|reserved_special_token_0|>")

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts a text before BPE; llama.cpp calls it `llama-bpe` and has it built in."""

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def train(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges from `texts`; the same texts give the same tokenizer."""
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, digits, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BEGIN} $A",
                pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
                special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
            ),
        ]
    )
    return tokenizer


def render(messages: Iterable[Message]) -> str:
    """Write a conversation as the chat template does, up to where the assistant is to speak."""
    said = "".join(
        f"{HEADER}{one['role']}{HEADER_END}\n\n{one['content'].strip()}{EOT}" for one in messages
    )
    return f"{BEGIN}{said}{HEADER}assistant{HEADER_END}\n\n"


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files from which `transformers` and llama.cpp's converters know the tokenizer."""
    config: dict[str, Any] = {
        "bos_token": BEGIN,
        "eos_token": EOT,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": POSITIONS,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
