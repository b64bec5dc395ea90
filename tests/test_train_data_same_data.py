"""A run that goes on notices that its data are not those it began with, and names what would leak."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rig.errors import RigError
from train.data import dataset, same_data

pytestmark = pytest.mark.usefixtures("elsewhere")


def cups(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Tom has {n + 2} cups and gets {n} more. How many?", "answer": str(2 * n + 2)}
        for n in range(count)
    ]


def write(rows: list[dict[str, Any]]) -> dataset.DataSplits:
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return dataset.load_splits("rows.jsonl", held_out=4)


CHANGES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "grown": lambda rows: cups(80),
    "one more": lambda rows: cups(41),
    "shrunk": lambda rows: rows[:30],
    "turned": lambda rows: rows[::-1],
    "a gold mended": lambda rows: [rows[0] | {"answer": "7"}, *rows[1:]],
    "a question reworded": lambda rows: [*rows[:-1], rows[-1] | {"question": "What is 2 + 2?"}],
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(tmp_path: Path, change: str) -> None:
    same_data.note_data(tmp_path, write(cups(40)))
    same_data.check_data(tmp_path, write(cups(40)), "rows.jsonl")
    changed = write(CHANGES[change](cups(40)))
    with pytest.raises(
        RigError, match=r"changed since it began \(rows\.jsonl: 36 training prompts"
    ):
        same_data.check_data(tmp_path, changed, "rows.jsonl")


def test_a_question_that_was_kept_apart_and_would_be_trained_on_is_named(tmp_path: Path) -> None:
    then = write(cups(40))
    same_data.note_data(tmp_path, then)
    now = write(cups(80))
    leaked = {row["question"] for row in then.held_out} & {row["question"] for row in now.train}
    assert leaked, "or this case shows nothing"
    with pytest.raises(RigError) as told:
        same_data.check_data(tmp_path, now, "rows.jsonl")
    named = str(told.value).partition("it would now be trained on ")[2]
    assert any(named.startswith(repr(question)) for question in leaked)
    assert (f"and {len(leaked) - 1} more" in named) == (len(leaked) > 1)


def test_another_column_may_come_and_a_run_of_before_passes(tmp_path: Path) -> None:
    same_data.check_data(tmp_path, write(cups(40)), "rows.jsonl")
    same_data.note_data(tmp_path, write(cups(40)))
    same_data.check_data(tmp_path, write([row | {"by": "Ann"} for row in cups(40)]), "rows.jsonl")


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    for text in ("{", "{}", "[]", '{"held_out": 3}'):
        (tmp_path / same_data.FILE).write_text(text, "utf-8")
        with pytest.raises(RigError, match=r"kept_apart\.json is damaged"):
            same_data.check_data(tmp_path, write(cups(40)), "rows.jsonl")
