"""The words of an exported file: the same tokens, template, contract and ends as the model it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.checkpoint.tokenizer_files import load_tokenizer
from export.llama import LlamaModel
from export.plan import ExportPlan
from export.verify.report import CheckReport
from rig.model import chat_template
from rig.model.gguf import read_header

Cuts = list[tuple[bool, list[list[int] | None]]]
"""Token ids of every text, without and with what the tokenizer adds by itself; None: it cannot say."""


def sample_texts() -> list[str]:
    """Texts in many scripts, with code, numbers and odd spaces; written for rig."""
    return (Path(__file__).parent / "sample.txt").read_text("utf-8").split("\n-----\n")


def compare_tokens(
    plan: ExportPlan,
    loaded: LlamaModel,
    texts: Sequence[str],
    theirs: Cuts,
    name: str,
    report: CheckReport,
) -> None:
    """Cut every text as the file does, and compare with what the model's own tokenizer made of it."""
    count = different = 0
    first = ""
    for add, cuts in theirs:
        for text, wanted in zip(texts, cuts, strict=True):
            if wanted is None:
                continue
            got = loaded.tokenize_text(text, add=add)
            count += len(wanted)
            if got != wanted:
                different += 1
                first = first or _where(text, wanted, got)
    found = {"texts": 2 * len(texts), "tokens": count, "different": different}
    report.tokens = found if not report.tokens.get("different") else report.tokens
    if different:
        report.problems.append(
            f"{name} cuts {different} of {2 * len(texts)} texts into other tokens than the "
            f"tokenizer in {plan.tokenizer} ({first}): take the tokenizer files of the base model."
        )


def compare_template(
    plan: ExportPlan, loaded: LlamaModel, prompts: Sequence[str], path: Path, report: CheckReport
) -> None:
    """Template, contract, beginning and end tokens as they were in training."""
    held = read_header(path).metadata
    template = chat_template.default_template(plan.vocabulary.template)
    if held.get("tokenizer.chat_template") != template:
        report.problems.append(
            f"{path.name} has another chat template than {plan.source.adapter or plan.tokenizer}: "
            f"export it again."
        )
    taught = plan.source.reply_format.to_metadata()
    if any(held.get(key) != value for key, value in taught.items()):
        report.problems.append(
            f"{path.name} does not carry the system prompt and marks it was taught: export again."
        )
    begin = loaded.special_token_id("bos")
    for prompt in prompts:
        ids = loaded.tokenize_text(prompt)
        if begin >= 0 and ids[:2] == [begin, begin]:
            bos = special_token_text(plan, "bos")
            report.problems.append(
                f"The chat template begins a text twice ({bos} {bos}): the "
                f"model never saw that; correct chat_template in {plan.tokenizer}."
            )
            break
    for name in ("eos", "eot", "eom"):
        number = plan.vocabulary.special.get(name)
        if number is not None and not loaded.ends_reply(number):
            report.problems.append(
                f"{path.name} does not stop at {plan.vocabulary.tokens[number]!r}, which ends a "
                f"reply in training: answers would run on."
            )


def source_tokens(plan: ExportPlan, texts: Sequence[str]) -> Cuts:
    """What the model's own tokenizer makes of the texts."""
    if (plan.tokenizer / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(plan.tokenizer)
        return [
            (add, [one.ids for one in tokenizer.encode_batch(list(texts), add_special_tokens=add)])
            for add in (False, True)
        ]
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(plan.tokenizer / "tokenizer.model"))
    marks = [text for text in plan.vocabulary.tokens if text.startswith("<") and text.endswith(">")]
    plainly = [None if any(m in text for m in marks) else pieces.encode(text) for text in texts]
    begin = [plan.vocabulary.special["bos"]] if plan.vocabulary.adds.get("bos", True) else []
    return [
        (False, plainly),
        (True, [ids if ids is None else [*begin, *ids] for ids in plainly]),
    ]


def _where(text: str, wanted: Sequence[int], got: Sequence[int]) -> str:
    at = next((n for n, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), 0)
    return f"first in {text[:30]!r}, token {at}"


def special_token_text(plan: ExportPlan, name: str) -> str:
    """The text of the token `bos`, `eos`, ...; empty where there is none."""
    number = plan.vocabulary.special.get(name)
    return "" if number is None else plan.vocabulary.tokens[number]
