"""Proof that an exported file behaves like what was trained; nothing is called done before.

Text becomes the same tokens, next-token distributions stay close to 16 bit and to the trained model, five
questions are answered and the answers end, and the adapter is still felt after quantising. What is wrong
is a sentence in `problems`, what could not be looked at one in `notes`.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from export.llama import LlamaModel, useful_threads
from export.plan import ExportPlan
from export.verify import logits, tokens
from export.verify.report import CheckReport
from export.verify.tokens import special_token_text
from rig.model import chat_template

QUESTIONS = 5
REPLY = 256
"""Tokens an answer may have where the recipe does not say."""
ASKED = (
    "Mia has 17 apples. She buys 25 more apples. How many apples does Mia have now?",
    "A train leaves at 9 and arrives at 14. How many hours does it take?",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Is a whale a fish? Answer in one sentence.",
)


def verify_files(
    plan: ExportPlan,
    files: Sequence[Path],
    reference: Path | None,
    threads: int,
    tell: Callable[[str], None],
) -> CheckReport:
    """Check `files`; `reference` is a 16-bit file of the same plan (None: no comparison with 16 bit)."""
    started, report = time.monotonic(), CheckReport(tell)
    threads = useful_threads(threads, plan.conversion_pass.parameter_count)
    prompts, samples = _questions(plan, report)
    texts = tokens.sample_texts()
    cut = [*texts, *samples, *prompts]
    theirs = tokens.source_tokens(plan, cut)
    for path in files:
        report.tell(f"tokens and chat template of {path.name}")
        with LlamaModel(path, vocabulary=True) as loaded:
            tokens.compare_tokens(plan, loaded, cut, theirs, path.name, report)
            tokens.compare_template(plan, loaded, prompts, path, report)
            pieces = logits.sample_sequences(loaded, [*samples, *texts])
            asked = [loaded.tokenize_text(prompt) for prompt in prompts]
    logits.adapter_effect(plan, files, report)
    logits.compare_logits(plan, files, reference, pieces, report, threads)
    for path in files:
        _answers(plan, path, asked, report, threads)
    report.seconds = time.monotonic() - started
    return report


def _questions(plan: ExportPlan, report: CheckReport) -> tuple[list[str], list[str]]:
    """Five prompts ready for the model, and texts it produced; the run's own where there are some."""
    seen: dict[str, str] = {}
    run = plan.source.run
    if run is not None and (run.path / "samples.jsonl").is_file():
        for line in (run.path / "samples.jsonl").read_text("utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # the last line of a killed training may be half
            if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
                seen.setdefault(row["prompt"], row["prompt"] + row["completion"])
    if len(seen) >= QUESTIONS:
        return list(seen)[-QUESTIONS:], list(seen.values())[-50:]
    template = chat_template.default_template(plan.vocabulary.template)
    if template is None:
        report.notes.append("The model has no chat template: no questions were asked.")
        return [], list(seen.values())
    prompts = []
    system = plan.source.reply_format.system_prompt
    for question in ASKED:
        said = [{"role": "system", "content": system}] if system else []
        said.append({"role": "user", "content": question})
        try:
            prompts.append(
                chat_template.render_chat(
                    template,
                    said,
                    bos=special_token_text(plan, "bos"),
                    eos=special_token_text(plan, "eos"),
                )
            )
        except chat_template.ChatTemplateError as error:
            report.problems.append(f"{error.message} Train and serve with a template that works.")
            break
    return prompts, list(seen.values())


def _answers(
    plan: ExportPlan, path: Path, asked: Sequence[Sequence[int]], report: CheckReport, threads: int
) -> None:
    """Let the file answer; the answers must come to an end."""
    if not asked:
        return
    limit = _limit(plan)
    longest = max(map(len, asked))
    entry = report.file_figures(path.name)
    answers, ended = [], 0
    with LlamaModel(path, context=longest + limit + 1, threads=threads) as loaded:
        for number, prompt in enumerate(asked, 1):
            report.tell(f"question {number} of {len(asked)} to {path.name}")
            tokens, over = loaded.generate_greedy(prompt, limit)
            answers.append(
                plan.source.reply_format.split_reply(loaded.detokenize(tokens)).answer[:200]
            )
            ended += over
    entry |= {"asked": len(asked), "ended": ended, "answers": answers}
    if ended == len(asked):
        return
    sentence = (
        f"{path.name}: {len(asked) - ended} of {len(asked)} answers do not end in {limit} tokens."
    )
    if ended == 0 and plan.source.adapter is not None:
        report.problems.append(
            f"{sentence} Was the model taught to stop ({special_token_text(plan, 'eos')})?"
        )
    else:
        report.notes.append(sentence)


def _limit(plan: ExportPlan) -> int:
    """The most tokens a completion had in training."""
    run = plan.source.run
    if run is None:
        return REPLY
    try:
        recipe = tomllib.loads((run.path / "recipe.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return REPLY
    tables = [recipe, *(table for table in recipe.values() if isinstance(table, dict))]
    found = [t["max_completion_length"] for t in tables if "max_completion_length" in t]
    return int(found[0]) if found and isinstance(found[0], int) else REPLY
