"""Rows from wherever a recipe says: a file, the hub, or made on the spot. Rows are plain dictionaries here.

What they mean is `train.data.dataset`'s business. Files are read without the data-set library: a damaged
line is then named by its number, and nothing is cached that could go stale. What a spreadsheet or a notebook
writes is read as it is: any separator, UTF-16, quotes behind a backslash, a list wrapped in an object.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from rig.errors import RigError, WrongUse, suggest_name

Row = dict[str, Any]

GSM8K = ("openai/gsm8k", "main")
FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
GENERATED = ("arithmetic",)
MADE = 2000
"""Rows that `generated:` makes to train on when no limit is given."""
SEPARATORS = ",;\t|"
LONGEST_CELL = 2**31 - 1

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class PlacedRow(NamedTuple):
    """A row, and where its source has it: `line 7`."""

    place: str
    row: Row


def names_file(source: str) -> bool:
    """Whether `source` is a file, there or not, and so is never looked for on the hub."""
    path = Path(source).expanduser()
    return path.suffix.lower() in FILES or path.is_file()


def read_source(
    source: str,
    *,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> list[PlacedRow]:
    """Return every row of a file (see `FILES`) or of one split of a hub data set."""
    if names_file(source):
        rows = _from_file(Path(source).expanduser())
    elif source == "gsm8k":
        rows = _from_hub(GSM8K[0], GSM8K[1], split, revision)
    else:
        rows = _from_hub(source, subset, split, revision)
    if not rows:
        raise WrongUse(f"{source} has no rows: give a data set that holds some.")
    return rows


def _from_file(path: Path) -> list[PlacedRow]:
    if not path.is_file():
        raise WrongUse(f"There is no data file {path}: check data.source in the recipe.")
    if path.suffix.lower() not in FILES:
        raise WrongUse(
            f"{path} is of a kind that is not read: save it as one of {', '.join(FILES)}."
        )
    try:
        return _READERS[path.suffix.lower()](path)
    except UnicodeError as error:
        at = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise WrongUse(f"{path} is not UTF-8 text{at}: save it again in UTF-8.") from error


def generate_rows(kind: str, count: int, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return `count` rows to train on and `held_out` others, both made from `seed`."""
    if kind not in GENERATED:
        raise WrongUse(f"There are no generated tasks {kind!r}; {suggest_name(kind, GENERATED)}")
    from train.data import arithmetic

    return (
        [dict(row) for row in arithmetic.make_rows(count, "train", seed)],
        [dict(row) for row in arithmetic.make_rows(held_out, "held-out", seed)],
    )


def _open(path: Path) -> IO[str]:
    """The text of a file: UTF-8, or UTF-16 where it begins as that."""
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    return path.open(encoding="utf-16" if wide else "utf-8-sig", newline="")


def _jsonl(path: Path) -> list[PlacedRow]:
    rows = []
    with _open(path) as lines:
        for at, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise WrongUse(f"{path}, line {at} is not JSON ({error}): mend it.") from error
            rows.append(_object(_sound(row, line), path, f"line {at}"))
    return rows


def _json(path: Path) -> list[PlacedRow]:
    with _open(path) as file:
        text = file.read()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongUse(f"{path} is not JSON ({error}): mend it, or name it .jsonl.") from error
    found = _sound(found, text)
    if isinstance(found, dict):  # such as {"data": [...]}
        inside = [
            one
            for one in found.values()
            if isinstance(one, list) and one and isinstance(one[0], dict)
        ]
        found = inside[0] if len(inside) == 1 else found
    if not isinstance(found, list):
        raise WrongUse(f"{path} must hold a list of objects; one object per line goes in .jsonl.")
    return [_object(row, path, f"entry {at}") for at, row in enumerate(found, 1)]


def _object(row: object, path: Path, place: str) -> PlacedRow:
    if not isinstance(row, dict):
        raise WrongUse(
            f'{path}, {place} is not an object such as {{"question": "...", "answer": "..."}}.'
        )
    return PlacedRow(place, row)


def _sound(value: Any, text: str) -> Any:
    """`value` with half a character (`\\ud83d` alone) as the sign for that, which no tokenizer refuses."""
    return _mended(value) if _SURROGATE.search(text) else value


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(one) for one in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(one) for name, one in value.items()}
    return value


def _csv(path: Path) -> list[PlacedRow]:
    try:
        return _table(path, escape=None)
    except WrongUse:
        with _open(path) as file:
            if '\\"' not in file.read():
                raise
        return _table(path, escape="\\")  # quotes written as a programmer would


def _table(path: Path, escape: str | None) -> list[PlacedRow]:
    with _open(path) as file, _long_cells():
        named = re.fullmatch(r"sep=(.)\s*", file.readline())  # a spreadsheet's own hint
        skipped = 1 if named else 0
        if not named:
            file.seek(0)
        mark = named[1] if named else _separator(path, escape)
        reader = csv.reader(
            file, strict=True, delimiter=mark, skipinitialspace=True, escapechar=escape
        )
        rows: list[PlacedRow] = []
        try:
            header = [name.strip() for name in next(reader, [])]
            _insist_on_different(header, path)
            at = skipped + reader.line_num + 1
            for cells in reader:
                if cells:
                    rows.append(_named_cells(header, cells, path, at))
                at = skipped + reader.line_num + 1
        except csv.Error as error:
            place = skipped + reader.line_num
            raise WrongUse(
                f"{path}, line {place} is not CSV ({error}): put a cell that holds quotes in quotes and "
                f"double those inside."
            ) from error
    return rows


def _separator(path: Path, escape: str | None) -> str:
    """The sign that cuts the header into the most names; quoted ones are whole."""
    if path.suffix.lower() == ".tsv":
        return "\t"

    def names(mark: str) -> int:
        with _open(path) as file:
            try:
                return len(
                    next(
                        csv.reader(file, delimiter=mark, skipinitialspace=True, escapechar=escape),
                        [],
                    )
                )
            except csv.Error:
                return 0

    return max(SEPARATORS, key=names)


def _insist_on_different(header: list[str], path: Path) -> None:
    if twice := [name for name in header if header.count(name) > 1]:
        raise WrongUse(f"{path} has two columns called {twice[0]!r}: rename one of them.")


def _named_cells(header: list[str], cells: list[str], path: Path, at: int) -> PlacedRow:
    if len(cells) > len(header):
        raise WrongUse(f"{path}, line {at} has more fields than the header: quote its commas.")
    missing = [None] * (len(header) - len(cells))
    return PlacedRow(f"line {at}", dict(zip(header, [*cells, *missing], strict=True)))


@contextmanager
def _long_cells() -> Iterator[None]:
    """A cell may be longer than the 131,072 characters that the csv module allows."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> list[PlacedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        return _counted(pyarrow.parquet.read_table(path).to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise WrongUse(f"{path} is not a Parquet file ({error}).") from error


def _counted(rows: list[Row]) -> list[PlacedRow]:
    return [PlacedRow(f"row {at}", dict(row)) for at, row in enumerate(rows, 1)]


_READERS = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
}  # fmt: skip


def _from_hub(name: str, subset: str | None, split: str, revision: str | None) -> list[PlacedRow]:
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
    return _counted(found)
