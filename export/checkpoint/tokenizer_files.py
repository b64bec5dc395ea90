"""What a tokenizer's files say, read as far as a GGUF can hold it, before any library is given them.

A pattern or a replacement from anywhere may take for ever or fill the memory in native code, where nothing
ends it; so those that llama.cpp has no name for are refused here, by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from export.checkpoint.config import (
    check_typed,
    read_json,
    read_tokenizer_config,
    refuse_untyped,
)
from rig.errors import RigError
from rig.model.foreign import read_foreign_text

Json = dict[str, Any]
PIECES = "tokenizer.model"
MOST_TEMPLATE = 1 << 20
"""Bytes of the largest chat template."""
MOST_STEPS, MOST_GROWTH = 2000, 64
"""Most parts of a normalizer, and how many times longer it may make a text."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FRONT = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = {
    _WORDS.replace("DIGITS", "{1,3}"): "llama-bpe",
    _WORDS.replace("DIGITS", ""): "qwen2",
    f"{_FRONT}{_UPPER}*{_LOWER}+|{_FRONT}{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""Regular expressions that llama.cpp has built in, by the name it gives them."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow")

    vocab: dict[str, Annotated[int, Field(ge=0, lt=2**31)]]
    merges: list[str] | list[tuple[str, str]] = []
    unk_token: str | None = None
    byte_fallback: bool | None = None
    ignore_merges: bool | None = None


class _Added(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: Annotated[int, Field(ge=0, lt=2**31)]
    content: str
    special: bool = False
    normalized: bool = True


class _Tokenizer(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: _Model
    added_tokens: list[_Added] = []


class _AddedTokens(BaseModel):
    tokens: dict[str, Annotated[int, Field(ge=0, lt=2**31)]]


class _TemplateFile(BaseModel):
    model_config = ConfigDict(extra="allow")

    chat_template: str | None = None


def read_tokenizer(folder: Path) -> Json:
    """tokenizer.json, checked; `{}` where the folder has tokenizer.model and nothing else."""
    path = folder / "tokenizer.json"
    whole = read_json(path)
    if not whole:
        if (folder / PIECES).is_file():
            return {}
        raise RigError(
            f"{folder} has no tokenizer (tokenizer.json or {PIECES}): copy the base model's there."
        )
    model = whole.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "BPE" and not (folder / PIECES).is_file():
        raise RigError(
            f"{path} is a {kind or 'nameless'} tokenizer; rig exports BPE and SentencePiece ones."
        )
    if kind != "BPE":
        return {}
    refuse_untyped(whole, _Tokenizer, path)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        _refuse_wild(whole.get(part), part, path)
    if not whole["model"].get("byte_fallback"):
        pre_tokenizer_name(whole, path)
    return whole


def build_tokenizer(whole: Json, folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of what was read, cutting texts of any length."""
    from tokenizers import Tokenizer

    try:
        path = folder / "tokenizer.json"
        text = read_foreign_text(path) if path.is_file() else json.dumps(whole)
        found = Tokenizer.from_str(text)
    except BaseException as error:  # its errors are bare ones, and a panic is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise RigError(
            f"{folder}/tokenizer.json is damaged ({str(error)[:200]}): copy or download it again."
        ) from None
    found.no_truncation()
    found.no_padding()
    return found


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a folder; half a second for Llama 3's."""
    return build_tokenizer(read_tokenizer(folder), folder)


def read_added_tokens(folder: Path) -> dict[str, int]:
    """added_tokens.json: texts that were added to a vocabulary, and their ids."""
    path = folder / "added_tokens.json"
    found: dict[str, int] = check_typed({"tokens": read_json(path)}, _AddedTokens, path)["tokens"]
    return found


def chat_template(folder: Path) -> str | list[dict[str, str]] | None:
    """The chat template of a folder, wherever the version of transformers that saved it put it."""
    config = read_tokenizer_config(folder)
    if config.get("chat_template"):
        return config["chat_template"]  # type: ignore[no-any-return]
    single = folder / "chat_template.jinja"
    if single.is_file():
        text = read_foreign_text(single, most=MOST_TEMPLATE)
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if not others:
            return text
        named = [
            {"name": path.stem, "template": read_foreign_text(path, most=MOST_TEMPLATE)}
            for path in others
        ]
        return [{"name": "default", "template": text}, *named]
    path = folder / "chat_template.json"
    found: str | None = check_typed(read_json(path), _TemplateFile, path).get("chat_template")
    return found


def pre_tokenizer_name(whole: Json, where: Path) -> str:
    """llama.cpp's name for the way a byte-level tokenizer cuts text before it merges.

    >>> steps = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]
    >>> pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}, Path("x"))
    'smollm'
    """
    step = whole.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    if not any(one.get("add_prefix_space") for one in steps):
        match [one.get("type") for one in steps]:
            case ["Split", "ByteLevel"]:
                name = PATTERNS.get(steps[0].get("pattern", {}).get("Regex", ""), "")
                if name == "llama-bpe" and not whole.get("model", {}).get("ignore_merges"):
                    return "smaug-bpe"  # the same cuts, without taking whole words first
                if name and not steps[1].get("use_regex", False):
                    return name
            case ["ByteLevel"] if steps[0].get("use_regex", True):
                return "gpt-2"
            case ["Digits", "ByteLevel"] if steps[0].get("individual_digits"):
                return "smollm"
    raise RigError(
        f"{where} cuts text in a way that llama.cpp has no name for (pre_tokenizer: "
        f"{json.dumps(step)[:200]}): take the tokenizer files of the base model."
    )


def _refuse_wild(step: object, part: str, path: Path) -> None:
    """Stop at patterns that llama.cpp does not have, and at what makes texts much longer."""
    if step is not None and not isinstance(step, dict):
        raise RigError(f"{path} is damaged (its {part} is no object): copy or download it again.")
    left, growth, waiting = MOST_STEPS, 1.0, [step]
    while waiting:
        one = waiting.pop()
        left -= 1
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            growth *= _refuse_odd_step(one, part, path)
        if left < 0 or growth > MOST_GROWTH:
            raise RigError(
                f"{path} is damaged (its {part} would make texts far longer, or is far too long): copy or "
                f"download it again."
            )


def _refuse_odd_step(step: Json, part: str, path: Path) -> float:
    """Refuse what a step must not be; how many times longer it may make a text."""
    inner = [step.get(key) for key in ("pretokenizers", "normalizers", "processors", "decoders")]
    lists = all(
        one is None or (isinstance(one, list) and all(isinstance(x, dict) for x in one))
        for one in inner
    )
    pattern = step.get("pattern", {})
    if not lists or not isinstance(pattern, dict | str):
        raise RigError(f"{path} is damaged (its {part} makes no sense): copy or download it again.")
    given = pattern if isinstance(pattern, dict) else {"String": pattern}
    if "Regex" in given and given["Regex"] not in PATTERNS:
        raise RigError(
            f"{path} cuts text in a way that llama.cpp has no name for ({part}: "
            f"{json.dumps(step)[:200]}): take the tokenizer files of the base model."
        )
    content = step.get("content", step.get("prepend", ""))
    replaced = given.get("String", "x")
    if not isinstance(content, str) or not isinstance(replaced, str):
        return 1.0
    return max(1.0, len(content) / max(1, len(replaced)))
