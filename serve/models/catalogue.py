"""Which models are here, and which file a name means: a run folder, a GGUF file, or a pulled reference."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rig import runs
from rig.errors import RigError, WrongUse, suggest_name
from rig.model import gguf
from rig.paths import shell_word
from rig.server import running_servers
from serve.hardware import machine
from serve.hardware.machine import format_bytes
from serve.hardware.memory import fit_context
from serve.models import download
from serve.models.reference import SPLIT, ModelReference, parse_reference, quant_of


@dataclass(frozen=True)
class ModelRow:
    """One row of `rig models`."""

    name: str
    """What every command takes as MODEL."""
    path: str
    bytes: int
    """Size of all parts on disk."""
    quant: str
    context: int
    """Tokens it was trained on."""
    taught: bool
    """Whether it carries a contract of reasoning and answer."""
    fits: int
    """The context that `rig serve` would take here now; 0 when it does not fit."""
    note: str
    """Why it does not fit or can't be read; the address when it is being served."""
    fingerprint: str = ""
    """Tells this file from another (`gguf.fingerprint_file`); `/v1/models` of its server says the same."""


def find_model_file(name: str) -> Path:
    """The GGUF that `name` means (of a split one its first part), or a sentence about what to do."""
    path = runs.find_run(name)
    if (path / runs.RECORD).is_file():
        exported = runs.Run.open(path).gguf_files()
        if not exported:
            raise WrongUse(f"{path} has no GGUF yet: rig export {shell_word(name)} --gguf")
        return exported[0]
    if path.is_file():
        return path
    if path.is_dir():
        return _only_one(path)
    reference = parse_reference(name)
    if reference is not None:
        return _pulled(reference)
    known = [model.name for model in list_models([])]
    hint = suggest_name(name, known) if known else "pull one: rig pull org/repo:Q4_K_M"
    raise WrongUse(f"There is no run, file or pulled model called {name}; {hint}")


def served_model_name(name: str, path: Path) -> str:
    """What a served model is called: the run's name, the reference, or the file's stem."""
    found = runs.find_run(name)
    if (found / runs.RECORD).is_file():
        return found.resolve().name
    return name if not found.exists() else path.stem


def list_models(extra: list[Path]) -> list[ModelRow]:
    """All models of the runs here, all pulled ones, and those in `extra` (files or folders)."""
    here = machine.inspect_machine()
    served = {found["model"]: found["url"] for found in running_servers.live_servers()}
    found: dict[Path, ModelRow] = {}
    for name, path in [*_of_runs(), *_pulled_files(), *_of_paths(extra)]:
        place = Path(os.path.realpath(path))  # as Path.resolve, but a loop of links is no error
        if place not in found:
            found[place] = _row(name, path, here, served)
    return list(found.values())


def format_models(rows: list[ModelRow]) -> list[str]:
    """The rows as aligned text."""
    table = [("MODEL", "SIZE", "QUANT", "TRAINED ON", "FINGERPRINT", "HERE")]
    for row in rows:
        fits = f"fits, with a context of {row.fits}" if row.fits else "does not fit"
        here = f"{fits}; {row.note}" if row.note and row.fits else row.note or fits
        cells = (row.name, format_bytes(row.bytes), row.quant, str(row.context or "?"))
        table.append((*cells, row.fingerprint[:8] or "?", here))
    widths = [max(len(line[n]) for line in table) for n in range(5)]
    return [
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}  {e:<{widths[4]}}  {f}"
        for a, b, c, d, e, f in table
    ]


def models_as_json(rows: list[ModelRow]) -> list[dict[str, Any]]:
    """The rows as plain objects."""
    return [asdict(row) for row in rows]


def _row(name: str, path: Path, here: machine.Machine, served: dict[str, str]) -> ModelRow:
    try:
        return _readable_row(name, path, here, served)
    except (RigError, OSError) as error:  # one bad file never hides the others
        said = error.message if isinstance(error, RigError) else f"{path} can't be read: {error}."
        size = path.lstat().st_size if os.path.lexists(path) else 0
        return ModelRow(name, str(path), size, "?", 0, False, 0, said)


def _readable_row(name: str, path: Path, here: machine.Machine, served: dict[str, str]) -> ModelRow:
    found = gguf.read_header(path)
    quant = found.quant_name if found.quant_name != "?" else quant_of(path.name) or "?"
    taught = bool(found.reply_format.reasoning_open)
    url = served.get(str(path.resolve())) or served.get(name)
    note, context = f"running at {url}" if url else "", 0
    try:
        context = fit_context(found, here, name=name).context
    except RigError as error:
        note = note or error.message.partition(": ")[2].split(". ")[0]
        note = note if url else f"does not fit: {note}"
    return ModelRow(
        name,
        str(path),
        found.total_bytes,
        quant,
        found.context_length,
        taught,
        context,
        note,
        gguf.fingerprint_file(path),
    )


def _of_runs() -> list[tuple[str, Path]]:
    rows = []
    for record in sorted(Path("runs").glob(f"*/{runs.RECORD}")):
        try:
            exported = runs.Run.open(record.parent).gguf_files()
        except RigError:
            continue  # a damaged run is told of by whoever opens it
        for n, path in enumerate(exported):
            rows.append((str(path) if n else record.parent.name, path))
    return rows


def _pulled_files() -> list[tuple[str, Path]]:
    rows = []
    for path in sorted(download.models_folder().glob("*/*/**/*.gguf")):
        if (match := SPLIT.search(path.name)) and int(match[1]) > 1:
            continue
        org, repo, *inside = path.relative_to(download.models_folder()).parts
        siblings = _names(download.models_folder() / org / repo)
        quant = quant_of(path.name)
        short = ModelReference(f"{org}/{repo}", quant=quant)
        try:
            clear = short.choose_files(siblings)[0] == "/".join(inside)
        except WrongUse:  # two files of one quantisation
            clear = False
        rows.append((str(short) if clear else f"{org}/{repo}/{'/'.join(inside)}", path))
    return rows


def _of_paths(extra: list[Path]) -> list[tuple[str, Path]]:
    files: list[Path] = []
    for path in extra:
        files += sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    return [(str(path), path) for path in files]


def _pulled(reference: ModelReference) -> Path:
    place = download.models_folder() / reference.repo
    names = _names(place)
    if not names:
        raise WrongUse(f"{reference.repo} is neither a file nor pulled: rig pull {reference}")
    try:
        path = place / reference.choose_files(names)[0]
    except WrongUse as error:
        raise WrongUse(f"Of what is here, {error.message} Or: rig pull {reference}") from None
    known, asked = download.read_record(path), reference.revision
    if asked and asked != known.get("asked") and not str(known.get("revision")).startswith(asked):
        raise WrongUse(f"{reference.repo} is here at another revision: rig pull {reference}")
    return path


def _names(place: Path) -> list[str]:
    return [path.relative_to(place).as_posix() for path in sorted(place.rglob("*.gguf"))]


def _only_one(path: Path) -> Path:
    found = [
        p for p in sorted(path.glob("*.gguf")) if not (m := SPLIT.search(p.name)) or m[1] == "00001"
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise WrongUse(
            f"{path} holds several models: name one of {', '.join(p.name for p in found)}."
        )
    raise WrongUse(f"{path} is neither a run folder nor holds a GGUF file.")
