"""From any source to prompts with gold answers, cut in two: what is trained on, and what is never trained on.

A question stands on one side only, however often the source repeats it. Every prompt opens with the
contract's system prompt, the same in training, evaluation and serving. Whatever was left out is said in
`notes`, never silently done.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rig.errors import WrongUse, suggest_name
from rig.model.chat_template import Message
from rig.model.reply_format import TAUGHT
from train.data import answers, sources

Row = dict[str, Any]

RESERVED = {
    "prompt", "prompts", "completion", "completions", "completion_ids", "images", "image", "tools",
    "trainer_state", "log_extra", "log_metric", "environments",
}  # fmt: skip
"""Column names with a meaning of their own in TRL: a source's own columns of these names are left out."""
LONGEST_WORDS = 100
"""Characters up to which a gold answer that is no number counts as a final answer."""


@dataclass(frozen=True)
class DataSplits:
    """Rows with `prompt` (messages), `question`, `answer` (the bare gold) and the source's other columns."""

    train: list[Row]
    held_out: list[Row]
    notes: list[str] = field(default_factory=list)
    """Sentences for the person: what was left out, and why."""

    @property
    def held_out_fingerprint(self) -> str:
        """The same for two runs exactly when they judge on the same questions and golds."""
        asked = json.dumps([[row["prompt"], row["answer"]] for row in self.held_out])
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


def load_splits(
    source: str,
    *,
    system_prompt: str = TAUGHT.system_prompt,
    subset: str | None = None,
    revision: str | None = None,
    split: str = "train",
    held_out_split: str | None = None,
    held_out: float = 200,
    question: str = "question",
    answer: str = "answer",
    prompt: str | None = None,
    limit: int | None = None,
    seed: int = 3407,
) -> DataSplits:
    """Return both sides of `source`: `gsm8k`, `generated:arithmetic`, a file, or a hub id.

    Args:
        source: where the rows are.
        system_prompt: opens every prompt; empty = none.
        subset: configuration name of a hub data set.
        revision: commit or branch of a hub data set.
        split: split of a hub data set to train on.
        held_out_split: another split, or another file, to judge on; none = cut off the source.
        held_out: rows to judge on: a count, or a fraction below 1.
        question: column with the question.
        answer: column with the gold; of a worked solution, what follows #### or stands in a box.
        prompt: column with a ready list of messages, instead of `question`.
        limit: rows to train on at most, drawn by `seed`.
        seed: the same seed gives the same rows on both sides.
    """
    asked = prompt or question
    if source.startswith("generated:"):
        count = limit or sources.MADE
        judged = int(held_out) if held_out >= 1 else max(1, round(held_out * count))
        pair = sources.generate_rows(source.partition(":")[2], count, judged, seed)
        train, kept = (_rows(rows, source, asked, answer, system_prompt, []) for rows in pair)
        return DataSplits(train, kept)
    if source == "gsm8k":
        held_out_split = held_out_split or "test"
    notes: list[str] = []
    raw = sources.read_source(source, subset=subset, split=split, revision=revision)
    train = _rows(raw, source, asked, answer, system_prompt, notes)
    if held_out_split:
        is_file = held_out_split.endswith(sources.FILES)
        where = held_out_split if is_file else source
        raw = sources.read_source(where, subset=subset, split=held_out_split, revision=revision)
        judged_rows = _rows(raw, held_out_split, asked, answer, system_prompt, notes)
        kept = _drawn(judged_rows, _count(held_out, len(judged_rows)), seed)
        train = _apart(train, judged_rows, source, held_out_split, notes)
    else:
        train, kept = _cut(train, held_out, source, seed)
    if limit is not None and limit < len(train):
        train = _drawn(train, limit, seed)
    return DataSplits(train, kept, notes)


def drop_long_prompts(
    data: DataSplits, measure: Callable[[list[list[Message]]], list[int]], longest: int
) -> DataSplits:
    """Leave out training prompts of more than `longest` tokens, as `measure` counts them, and say how many.

    The held-out problems all stay, for they are the yardstick.

    Raises:
        WrongUse: when nothing is left to train on.
    """
    sizes = measure([row["prompt"] for row in data.train])
    fitting = [row for row, size in zip(data.train, sizes, strict=True) if size <= longest]
    if not fitting:
        raise WrongUse(
            f"Every training prompt has more than {longest} tokens (the shortest {min(sizes)}): "
            f"raise data.max_prompt_length."
        )
    gone = len(data.train) - len(fitting)
    note = (
        f"{gone} of {len(data.train)} training prompts have more than {longest} tokens "
        f"(the longest {max(sizes)}) and are left out: data.max_prompt_length."
    )
    return replace(data, train=fitting, notes=[*data.notes, note] if gone else data.notes)


def build_prompt(question: str, system_prompt: str) -> list[Message]:
    """Return the prompt for one question.

    >>> build_prompt("2+2?", "Think.")
    [{'role': 'system', 'content': 'Think.'}, {'role': 'user', 'content': '2+2?'}]
    """
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


# ----------------------------------------------------------------------------------------------------------
# One source's rows in our form


def _rows(
    raw: list[Row], source: str, asked: str, answer: str, system_prompt: str, notes: list[str]
) -> list[Row]:
    columns = {name: None for row in raw for name in row}
    for column, setting in ((asked, "question"), (answer, "answer")):
        if column not in columns:
            raise WrongUse(
                f"{source} has no column {column!r}; {suggest_name(column, columns)} "
                f"Set data.{setting} to the column with the {setting}."
            )
    others = [name for name in columns if name not in {asked, answer, "question", *RESERVED}]
    rows, unusable = [], []
    for at, row in enumerate(raw, 1):
        prompt, gold = _prompt(row.get(asked), system_prompt), _gold(row.get(answer))
        if prompt is None or gold is None:
            unusable.append(at)
            continue
        words = prompt[-1]["content"]
        made = {"prompt": prompt, "question": words, "answer": gold}
        rows.append(made | {name: row.get(name) for name in others if name != "answer"})
    if not rows:
        sample = str(raw[0].get(answer))
        raise WrongUse(
            f"In {source} no row has a question and a final answer: the column {answer!r} holds such "
            f"as {sample[:60]!r}. Set data.answer to a column with the bare answer, or with a "
            f"solution that ends in `#### 42` or \\boxed{{42}}."
        )
    if unusable:
        notes.append(
            f"{len(unusable)} of {len(raw)} rows of {source} have no question or no final answer "
            f"and are left out (the first is row {unusable[0]})."
        )
    _even_out(rows, others)
    return rows


def _prompt(value: object, system_prompt: str) -> list[Message] | None:
    if isinstance(value, str) and value.lstrip().startswith('[{"'):
        try:
            value = json.loads(value)
        except ValueError:
            return build_prompt(
                str(value), system_prompt
            )  # a question that only looks like messages
    if isinstance(value, list):
        if not all(isinstance(m, dict) and m.get("role") and m.get("content") for m in value):
            return None
        ready = [{"role": str(m["role"]), "content": str(m["content"])} for m in value]
        if not ready or ready[-1]["role"] != "user":
            return None
        own = ready[0]["role"] == "system"
        return ready if own or not system_prompt else [*build_prompt("", system_prompt)[:1], *ready]
    text = "" if value is None else str(value).strip()
    return build_prompt(text, system_prompt) if text else None


def _gold(value: object) -> str | None:
    """The bare final answer of a cell; None where there is none."""
    text = "" if value is None else str(value).strip()
    if "####" in text:
        text = answers.extract_gold_answer(text)
    elif "\\boxed{" in text or "<answer>" in text:
        text = answers.extract_final_answer(text) or ""
    if not text or text.lower() in ("nan", "none", "null"):
        return None
    short = "\n" not in text and len(text) <= LONGEST_WORDS
    return text if short or answers.parse_number(text) is not None else None


def _even_out(rows: list[Row], others: Iterable[str]) -> None:
    """Give every other column one type, for the table that the trainer makes of the rows."""
    for name in others:
        kinds = {type(row[name]) for row in rows if row.get(name) is not None}
        if len(kinds) > 1 or kinds & {list, dict}:
            for row in rows:
                value = row[name]
                plain = value is None or isinstance(value, str)
                row[name] = value if plain else json.dumps(value, default=str)


# ----------------------------------------------------------------------------------------------------------
# Two sides that never overlap


def _key(row: Row) -> str:
    """The same for questions that differ in case and spacing alone; the system prompt does not count."""
    asked = (said["content"] for said in row["prompt"] if said["role"] != "system")
    return " ".join("\n".join(asked).casefold().split())


def _count(held_out: float, rows: int) -> int:
    return int(held_out) if held_out >= 1 else max(1, round(held_out * rows))


def _drawn(rows: list[Row], count: int, seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, min(count, len(rows)))


def _cut(rows: list[Row], held_out: float, source: str, seed: int) -> tuple[list[Row], list[Row]]:
    firsts = list({_key(row): row for row in reversed(rows)}.values())[::-1]
    count = _count(held_out, len(firsts))
    if count >= len(firsts):
        raise WrongUse(
            f"{source} has {len(firsts)} different questions, and data.held_out = {held_out:g} would "
            f"leave none to train on: lower it, for instance to 0.1."
        )
    kept = _drawn(firsts, count, seed)
    taken = {_key(row) for row in kept}
    return [row for row in rows if _key(row) not in taken], kept


def _apart(
    train: list[Row], judged: list[Row], source: str, held_out_split: str, notes: list[str]
) -> list[Row]:
    taken = {_key(row) for row in judged}
    apart = [row for row in train if _key(row) not in taken]
    if not apart:
        raise WrongUse(
            f"Every question of {source} stands in {held_out_split} too, so none is left to train "
            f"on: give another data.held_out_split."
        )
    if twice := len(train) - len(apart):
        notes.append(
            f"{twice} questions of {source} stand in {held_out_split} too and are not trained on."
        )
    return apart
