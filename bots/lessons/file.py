"""The file of lessons: one JSON object a line, with the prompt as the bot asks it, and all that crosses.

Every row has `kind` (`card` or `article`), `bot`, `subject` (a card's name, an article's title), `prompt`
(messages), `asked` (attempts, temperature, tokens), `posts` (what a person decided: the model's `text`,
`verdict`, the `wanted` text, the `reason`) and, where there is a reply worth copying, `messages` (the prompt
and that reply) and `written_by`. Cards have `card`, `facts`, `limits` and `earlier` (posts of the last
month), articles `url`, `text` (what the prompt quotes) and `about` (title and date).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rig.atomic import atomic_file
from rig.errors import WrongUse

Lesson = dict[str, Any]


def write_lessons(path: Path, lessons: Iterable[Mapping[str, Any]]) -> int:
    """Write all of them or, if it is cut off, none; return how many there are."""
    count = 0
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for lesson in lessons:
            file.write(json.dumps(lesson, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_lessons(path: Path, kind: str) -> list[Lesson]:
    """The lessons of one kind (`card`, `article`) in the file."""
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found.append(_lesson(line, f"{path}, line {number}"))
    except FileNotFoundError:
        raise WrongUse(f"There is no file {path}: `rig bot lessons BOT --out {path}`.") from None
    kept = [one for one in found if one.get("kind") == kind]
    if not kept:
        raise WrongUse(f"{path} has no lessons about {kind}s: they come from another bot.")
    return kept


def read_cell(value: Any) -> Any:
    """A cell as it was before a table made text of it.

    >>> read_cell('[{"outlet": "x"}]'), read_cell("Moss Golem"), read_cell(["as", "it", "was"])
    ([{'outlet': 'x'}], 'Moss Golem', ['as', 'it', 'was'])
    """
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _lesson(line: str, where: str) -> Lesson:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise WrongUse(f"{where} is no JSON ({error}): write the lessons again.") from None
    if not isinstance(found, dict):
        raise WrongUse(f"{where} is no lesson: `rig bot lessons` writes objects.")
    return found
