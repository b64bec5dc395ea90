"""Rows from wherever a recipe says: a file, the hub, or made on the spot. Rows are plain dictionaries here.

What they mean is `train.data.dataset`'s business. Files are read without the data-set library: a damaged
line is then named by its number, and nothing is cached that could go stale.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from rig.errors import RigError, WrongUse, suggest_name

Row = dict[str, Any]

GSM8K = ("openai/gsm8k", "main")
FILES = (".jsonl", ".json", ".csv", ".parquet")
GENERATED = ("arithmetic",)
MADE = 2000
"""Rows that `generated:` makes to train on when no limit is given."""


def read_source(
    source: str,
    *,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> list[Row]:
    """Return every row of a file (.jsonl, .json, .csv, .parquet) or of one split of a hub data set."""
    path = Path(source)
    if path.suffix.lower() in FILES:
        if not path.is_file():
            raise WrongUse(f"There is no data file {path}: check data.source in the recipe.")
        try:
            rows = _READERS[path.suffix.lower()](path)
        except UnicodeDecodeError as error:
            raise WrongUse(
                f"{path} is not UTF-8 text (byte {error.start}): save it again in UTF-8."
            ) from error
    elif source == "gsm8k":
        rows = _from_hub(GSM8K[0], GSM8K[1], split, revision)
    else:
        rows = _from_hub(source, subset, split, revision)
    if not rows:
        raise WrongUse(f"{source} has no rows: give a data set that holds some.")
    return rows


def generate_rows(kind: str, count: int, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return `count` rows to train on and `held_out` others, both made from `seed`."""
    if kind not in GENERATED:
        raise WrongUse(f"There are no generated tasks {kind!r}; {suggest_name(kind, GENERATED)}")
    from train.data import arithmetic

    return (
        [dict(row) for row in arithmetic.make_rows(count, "train", seed)],
        [dict(row) for row in arithmetic.make_rows(held_out, "held-out", seed)],
    )


def _jsonl(path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for at, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise WrongUse(f"{path}, line {at} is not JSON ({error}): mend it.") from error
            rows.append(_object(row, f"{path}, line {at}"))
    return rows


def _json(path: Path) -> list[Row]:
    text = path.read_text("utf-8-sig")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise WrongUse(f"{path} is not JSON ({error}): mend it, or name it .jsonl.") from error
    if not isinstance(found, list):
        raise WrongUse(f"{path} must hold a list of objects; one object per line goes in .jsonl.")
    return [_object(row, f"{path}, entry {at}") for at, row in enumerate(found, 1)]


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise WrongUse(f'{where} is not an object such as {{"question": "...", "answer": "..."}}.')
    return row


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        mark = max(",;\t", key=file.readline().count)  # some spreadsheets write semicolons
        file.seek(0)
        reader = csv.DictReader(file, strict=True, delimiter=mark)
        try:
            rows = [dict(row) for row in reader]
        except csv.Error as error:
            raise WrongUse(f"{path}, line {reader.line_num} is not CSV ({error}).") from error
    if any(None in row for row in rows):
        at = next(at for at, row in enumerate(rows, 2) if None in row)
        raise WrongUse(f"{path}, row {at} has more fields than the header: quote its commas.")
    return rows


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise WrongUse(f"{path} is not a Parquet file ({error}).") from error


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _from_hub(name: str, subset: str | None, split: str, revision: str | None) -> list[Row]:
    import datasets

    try:
        found = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).partition("\n")[0]
        raise RigError(
            f"The data set {name!r} could not be had ({first}): check data.source, data.subset and "
            f"data.split, log in with `hf auth login` if it is private, or give a file "
            f"({', '.join(FILES)})."
        ) from error
    return [dict(row) for row in found]
