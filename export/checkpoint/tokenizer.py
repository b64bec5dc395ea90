"""The tokenizer as GGUF wants it: every id a text and a kind, merges or scores, and how text is cut first.

The way of cutting (llama.cpp's "pre-tokenizer") is read from what tokenizer.json says, not from a hash of
what it does: a hash of token ids misses as soon as a tokenizer was saved again or trained anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from export.checkpoint.config import (
    read_generation_config,
    read_model_config,
    read_tokenizer_config,
)
from export.checkpoint.tokenizer_files import (
    PIECES,
    build_tokenizer,
    chat_template,
    pre_tokenizer_name,
    read_added_tokens,
    read_tokenizer,
)
from rig.errors import RigError

Json = dict[str, Any]

KNOWN_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>",
    "<|end_of_text|>", "<eos>",
)  # fmt: skip
"""Tokens that llama.cpp takes for the end of a reply by their text alone (its src/llama-vocab.cpp)."""

SPACE = "\u2581"


@dataclass
class Vocabulary:
    """Everything GGUF says about a tokenizer, in GGUF's terms."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (SentencePiece)."""
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    """`bos`, `eos`, ... to token id."""
    adds: dict[str, bool] = field(default_factory=dict)
    """`bos`, `eos`, `sep`: whether the tokenizer adds it by itself."""
    space_prefix: bool | None = None
    template: str | list[dict[str, str]] | None = None
    """The chat template, or several by name."""

    def write_tokenizer_keys(self, writer: gguf.GGUFWriter) -> None:
        """Write the tokenizer's keys."""
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.kinds)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        for name, value in self.adds.items():
            getattr(writer, f"add_add_{name}_token")(value)
        if self.template is not None:
            writer.add_chat_template(self.template)


def load_vocabulary(
    folder: Path, size: int, *, gemma: bool = False, template_from: Path | None = None
) -> Vocabulary:
    """Read the tokenizer of `folder` for a model of `size` embedding rows.

    `template_from`: a folder whose chat template wins, such as the adapter's, which was trained with it.
    """
    config = read_tokenizer_config(folder)
    whole = read_tokenizer(folder)
    pieces = folder / PIECES
    tokenizer = build_tokenizer(whole, folder) if whole else None
    if pieces.is_file():
        found = _sentencepiece(folder, config, size)
    elif whole["model"].get("byte_fallback"):
        found = _fallback(whole, size)
    else:
        found = _byte_level(folder, whole, size, tokenizer)
    if gemma:
        found.space_prefix = False
    elif isinstance(config.get("add_prefix_space"), bool):
        found.space_prefix = config["add_prefix_space"]
    _special(found, folder, config, whole, tokenizer)
    found.template = (chat_template(template_from) if template_from else None) or chat_template(
        folder
    )
    return found


def _byte_level(folder: Path, whole: Json, size: int, tokenizer: Any) -> Vocabulary:
    path = folder / "tokenizer.json"
    texts = {number: text for text, number in tokenizer.get_vocab(True).items()}
    if max(texts) >= size:
        raise RigError(
            f"{path} knows token {max(texts)}, but the model has only {size} embeddings: the tokenizer "
            f"belongs to another model, or tokens were added and the embeddings not saved."
        )
    added = {one["id"]: one for one in whole.get("added_tokens", [])}
    tokens, kinds = [], []
    for number in range(size):
        text = texts.get(number)
        if text is None:
            tokens.append(f"[PAD{number}]")
            kinds.append(int(TokenType.UNUSED))
            continue
        entry = added.get(number)
        if entry is None:
            tokens.append(text)
            kinds.append(int(TokenType.NORMAL))
            continue
        if not entry.get("normalized", True):  # llama.cpp takes these texts as they are
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            text = tokenizer.decode(ids, skip_special_tokens=False)
        kinds.append(_added_kind(entry, text))
        user_defined = kinds[-1] == TokenType.USER_DEFINED
        tokens.append(text.replace(SPACE, " ") if user_defined else text)
    merges = [m if isinstance(m, str) else _join(m) for m in whole["model"].get("merges", [])]
    return Vocabulary("gpt2", pre_tokenizer_name(whole, path), tokens, kinds, merges=merges)


def _added_kind(entry: Json, text: str) -> int:
    looks = text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or (
        (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
    return int(TokenType.CONTROL if entry.get("special") or looks else TokenType.USER_DEFINED)


def _join(merge: list[str]) -> str:
    """A merge of two texts as one line; spaces inside become what byte-level BPE writes for them."""
    return " ".join(part.replace(" ", chr(ord(" ") + 256)) for part in merge)


def _sentencepiece(folder: Path, config: Json, size: int) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.model"
    pieces, found = SentencePieceProcessor(), _blank(size)
    try:
        pieces.LoadFromFile(str(path))
        for number in range(min(pieces.vocab_size(), size)):
            kind = TokenType.NORMAL
            if pieces.IsUnknown(number):
                kind = TokenType.UNKNOWN
            elif pieces.IsControl(number):
                kind = TokenType.CONTROL
            elif pieces.IsUnused(number):
                kind = TokenType.UNUSED
            elif pieces.IsByte(number):
                kind = TokenType.BYTE
            found.tokens[number] = pieces.IdToPiece(number)
            found.scores[number] = pieces.GetScore(number)
            found.kinds[number] = int(kind)
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        raise RigError(
            f"{path} is no SentencePiece model ({error}): remove it if tokenizer.json lies beside it, "
            f"or download it again."
        ) from error
    for text, number in read_added_tokens(folder).items():
        if number < size:
            _put(found, number, text, int(TokenType.USER_DEFINED))
    for key, entry in (config.get("added_tokens_decoder") or {}).items():
        if int(key) < size:
            text = entry["content"]
            kind = _added_kind(entry, text)
            text = text.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else text
            _put(found, int(key), text, kind)
    return found


def _fallback(whole: Json, size: int) -> Vocabulary:
    """A SentencePiece model that was only saved as tokenizer.json: merge order becomes the scores.

    llama.cpp merges the pair whose joint text scores highest; the earlier a merge stands in the list,
    the higher its score must be. (Its own converter gives every token the same score here, and then
    cuts words in other places than the trained model does.)
    """
    model = whole["model"]
    found = _blank(size)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges", [])):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    unknown = model.get("unk_token")
    for text, number in model["vocab"].items():
        if number >= size:
            continue
        kind = TokenType.NORMAL
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = TokenType.BYTE
        elif text == unknown:
            kind = TokenType.UNKNOWN
        score = -float(ranks[text]) if text in ranks else -1e6
        found.tokens[number], found.scores[number], found.kinds[number] = text, score, int(kind)
    for entry in whole.get("added_tokens", []):
        text, number = entry["content"], entry["id"]
        if number < size and text != unknown:
            kind = _added_kind(entry, text)
            text = text.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else text
            _put(found, number, text, kind)
    prefix = [
        one.get("prepend") or one.get("prepend_scheme")
        for part in ("normalizer", "pre_tokenizer")
        for one in _steps(whole.get(part))
    ]
    if not any(value not in (None, "never") for value in prefix):
        found.space_prefix = False
    return found


def _steps(step: Json | None) -> list[Json]:
    step = step or {}
    return step.get("normalizers") or step.get("pretokenizers") or [step]


def _blank(size: int) -> Vocabulary:
    return Vocabulary(
        "llama",
        "default",
        [f"[PAD{number}]" for number in range(size)],
        [int(TokenType.UNUSED)] * size,
        scores=[-10000.0] * size,
    )


def _put(found: Vocabulary, number: int, text: str, kind: int) -> None:
    found.tokens[number], found.scores[number], found.kinds[number] = text, -1000.0, kind


def _special(found: Vocabulary, folder: Path, config: Json, whole: Json, tokenizer: Any) -> None:
    """Which ids are special, which of them the tokenizer adds by itself, and what else ends a reply."""
    model = read_model_config(folder)
    model = model | (model.get("text_config") or {})
    added = {one["content"]: one["id"] for one in whole.get("added_tokens", [])}
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        text = config.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        number = added.get(text, model.get(f"{name}_token_id"))
        if isinstance(number, int) and 0 <= number < len(found.tokens):
            found.special[name] = number
    found.adds = _adds(found, config, whole, tokenizer)
    generation = read_generation_config(folder).get("eos_token_id")
    given = generation if isinstance(generation, list) else [generation]
    ends: list[int] = [n for n in given if n is not None and 0 <= n < len(found.tokens)]
    if "eos" not in found.special and ends:
        found.special["eos"] = ends[0]
    unknown = [
        number
        for number in ends
        if number != found.special.get("eos") and found.tokens[number] not in KNOWN_ENDS
    ]
    found.special |= dict(zip(("eot", "eom"), unknown, strict=False))


def _adds(found: Vocabulary, config: Json, whole: Json, tokenizer: Any) -> dict[str, bool]:
    """What the tokenizer puts before and after a text by itself, found by letting it work."""
    if tokenizer is None:
        flags = {"bos": config.get("add_bos_token"), "eos": config.get("add_eos_token")}
        return {name: value for name, value in flags.items() if isinstance(value, bool)}
    ids = tokenizer.encode("x").ids
    adds = {
        "bos": ids[:1] == [found.special.get("bos")],
        "eos": ids[-1:] == [found.special.get("eos")],
    }
    step = whole.get("post_processor") or {}
    templates = [
        one for one in step.get("processors", [step]) if one.get("type") == "TemplateProcessing"
    ]
    if not templates:  # nothing there to add anything: what transformers' own flag says
        return {name: bool(config.get(f"add_{name}_token", was)) for name, was in adds.items()}
    pair = [next(iter(piece.values()))["id"] for piece in templates[-1].get("pair", [])]
    if {"A", "B"} <= set(pair) and pair.index("B") - pair.index("A") > 1:
        adds["sep"] = False  # what stands between is a second beginning, not a separator
    return adds
