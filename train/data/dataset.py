"""From any source to prompts with gold answers, cut in two: what is trained on, and what is never trained on.

A question stands on one side only, however often the source repeats it. Every prompt opens with the
contract's system prompt, the same in training, evaluation and serving. Whatever was left out is said in
`notes`, never silently done.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rig.errors import WrongUse
from rig.model.chat_template import Message
from rig.model.reply_format import TAUGHT
from train.data import cells, sources
from train.data.sources import PlacedRow

Row = dict[str, Any]

RESERVED = {
    "prompt", "prompts", "completion", "completions", "completion_ids", "images", "image", "tools",
    "trainer_state", "log_extra", "log_metric", "environments",
}  # fmt: skip
"""Column names with a meaning of their own in TRL: a source's own columns of these names are left out."""
KINDS = {
    "reply": "{n} of {of} rows of {source} end in a reply, which is left off: the prompt stands before it.",
    "system": "{n} of {of} rows of {source} bring a system prompt of their own, so the model is not told the "
    "form there that the rewards ask for: put it into those prompts, or leave them out.",
}
"""What is said of rows of a kind that may surprise."""
BITS = 63
"""A whole number of more bits fits no column of the trainer's table, and is kept as text."""


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
        question: column with the question; a dotted path (`extra.question`) for one within another.
        answer: column with the gold, or a dotted path (`reward_model.ground_truth`, `messages.-1.content`);
            of a worked solution, what follows #### or stands in a box; of a list, any entry.
        prompt: column with a ready list of messages, instead of `question`; a reply at its end is left off.
        limit: rows to train on at most, drawn by `seed`.
        seed: the same seed gives the same rows on both sides.
    """
    asked = prompt or question
    if source.startswith("generated:"):
        count = limit or sources.MADE
        judged = int(held_out) if held_out >= 1 else max(1, round(held_out * count))
        pair = sources.generate_rows(source.partition(":")[2], count, judged, seed)
        made = ([PlacedRow(f"row {at}", row) for at, row in enumerate(rows, 1)] for rows in pair)
        train, kept = (_rows(rows, source, asked, answer, system_prompt, []) for rows in made)
        return DataSplits(train, kept)
    if source == "gsm8k":
        held_out_split = held_out_split or "test"
    notes: list[str] = []
    raw = sources.read_source(source, subset=subset, split=split, revision=revision)
    train = _rows(raw, source, asked, answer, system_prompt, notes)
    if held_out_split:
        where = held_out_split if sources.names_file(held_out_split) else source
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
    raw: list[PlacedRow], source: str, asked: str, answer: str, system_prompt: str, notes: list[str]
) -> list[Row]:
    _insist_on_columns([row for _, row in raw], source, asked, answer)
    columns = {str(name): None for _, row in raw for name in row}
    others = [
        name for name in columns if name not in {asked, answer, "answer", "question", *RESERVED}
    ]
    rows, left_out, seen = [], [], Counter[str]()
    for place, row in raw:
        try:
            prompt, kinds = _prompt(cells.pick(row, asked), system_prompt)
            gold = cells.read_gold(cells.pick(row, answer))
        except cells.Unreadable as reason:
            left_out.append(f"{place}: {reason}")
            continue
        if gold is None:
            left_out.append(f"{place}: it has no final answer")
            continue
        made = {"prompt": prompt, "question": prompt[-1]["content"], "answer": gold}
        rows.append(made | {name: row.get(name) for name in others})
        seen.update(kinds)
    if not rows:
        sample = str(cells.pick(raw[0].row, answer))
        raise WrongUse(
            f"In {source} no row has a question and a final answer ({left_out[0]}): the column {answer!r} "
            f"holds such as {sample[:60]!r}. Set data.answer to a column with the bare answer, or with a "
            f"solution that ends in `#### 42` or \\boxed{{42}}."
        )
    if left_out:
        notes.append(
            f"{len(left_out)} of {len(raw)} rows of {source} have no question or no final answer "
            f"and are left out (the first is {left_out[0]})."
        )
    notes += [
        sentence.format(n=seen[kind], of=len(rows), source=source)
        for kind, sentence in KINDS.items()
        if seen[kind]
    ]
    _even_out(rows, others)
    return rows


def _insist_on_columns(rows: list[Row], source: str, asked: str, answer: str) -> None:
    for column, setting in ((asked, "question"), (answer, "answer")):
        if missing := cells.missing_column(rows, column):
            raise WrongUse(
                f"{source} has {missing} Set data.{setting} to the column with the {setting}."
                f"{_other_way(rows, setting)}"
            )


def _other_way(rows: list[Row], setting: str) -> str:
    """What else the columns of chats allow: a prompt of messages, a gold from their reply."""
    for name, value in rows[0].items():
        try:
            messages = cells.read_messages(value) if cells.is_list(value) else ""
        except cells.Unreadable:
            continue
        if not isinstance(messages, list):
            continue
        if setting == "question":
            return f" The messages in {name!r} are a prompt: data.prompt = {name!r}."
        if messages[-1]["role"] == "assistant":
            field = "value" if "value" in cells.unprint(value)[-1] else "content"
            path = f"{name}.-1.{field}"
            return f" The messages in {name!r} end in a reply, which is the gold with data.answer = {path!r}."
    return ""


def _prompt(value: object, system_prompt: str) -> tuple[list[Message], list[str]]:
    """The prompt of a cell, and which of `KINDS` it is."""
    found = cells.read_messages(value)
    if isinstance(found, str):
        return build_prompt(found, system_prompt), []
    asked = cells.without_reply(found)
    kinds = ["reply"] if len(asked) < len(found) else []
    if asked[0]["role"] == "system":
        hidden = system_prompt and system_prompt.strip() not in asked[0]["content"]
        return asked, [*kinds, "system"] if hidden else kinds
    return [*build_prompt("", system_prompt)[:-1], *asked], kinds


def _even_out(rows: list[Row], others: Iterable[str]) -> None:
    """Give every other column one type, for the table that the trainer makes of the rows."""
    for name in others:
        kinds = {type(row[name]) for row in rows if row.get(name) is not None}
        wide = int in kinds and any(
            isinstance(row[name], int) and row[name].bit_length() > BITS for row in rows
        )
        if wide or len(kinds) > 1 or kinds & {list, dict}:
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
