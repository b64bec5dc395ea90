"""Tokenizers of every kind that rig exports, tiny, trained on a few lines of text; for `tiny_models`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "Tom has 12 apples and buys 30 more; how many apples does he have now? 12 + 30 = 42.",
    "A dragon of 2500 attack destroys every spell card on the field, says the card's text.",
    "Ada wrote: \"numbers aren't everything\". It's the 3rd time she'd said so!\n\n",
    "Zürich, São Paulo and Łódź lie far apart; 東京 even farther. Привет, мир! 🚀",
    "<reasoning>\nfirst add, then divide by 7\n</reasoning>\n<answer>\n6\n</answer>",
    "def add(a, b):\n    return a + b\t# indented by four spaces\n",
]

LLAMA_TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATTERNS = {
    "llama": r"\p{N}{1,3}",
    "qwen2": r"\p{N}",
}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: Path, kind: str) -> int:
    """Train and write a tokenizer; return its size. Kinds: llama, qwen2, smollm, tekken, spm, spm-json."""
    return _sentencepiece(folder, kind) if kind.startswith("spm") else _byte_level(folder, kind)


def _byte_level(folder: Path, kind: str) -> int:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )  # fmt: skip

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)]
    if kind in PATTERNS:
        words = Regex(WORDS.replace("NUMBER", PATTERNS[kind]))
        steps = [pre_tokenizers.Split(words, behavior="isolated")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in PATTERNS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    if kind == "llama":
        tokenizer.add_special_tokens(
            ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
             "<|eot_id|>", "<|eom_id|>"]
        )  # fmt: skip
        begin = tokenizer.token_to_id("<|begin_of_text|>")
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin_of_text|> $A",
                    pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                    special_tokens=[("<|begin_of_text|>", begin)],
                ),
            ]
        )
        config |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        template = LLAMA_TEMPLATE
    else:
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        config |= {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        template = CHATML_TEMPLATE
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return tokenizer.get_vocab_size(with_added_tokens=True) + 3  # ids that no text has


def _sentencepiece(folder: Path, kind: str) -> int:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4), model_writer=model, vocab_size=420, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, split_digits=True, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
        "add_eos_token": False, "tokenizer_class": "LlamaTokenizer", "legacy": False,
        "chat_template": "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] }} "
        "[/INST]{% endfor %}",
    }  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = int(pieces.vocab_size())
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    _write_spm_json(folder, pieces)
    if kind == "spm-json":
        (folder / "tokenizer.model").unlink()
    return size


def _write_spm_json(folder: Path, pieces: Any) -> None:
    """The same tokenizer as transformers saves it: BPE with byte fallback and merges in order."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = {pieces.IdToPiece(i): i for i in range(pieces.vocab_size())}
    scores = {pieces.IdToPiece(i): pieces.GetScore(i) for i in range(pieces.vocab_size())}
    merges = []
    for piece in vocab:
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += [(scores[piece], a, b) for a, b in cuts if a in vocab and b in vocab]
    merges.sort(key=lambda merge: -merge[0])
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            [(a, b) for _, a, b in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
