"""The folder that a run leaves behind, and how far it has come.

`runs/<name>/` holds `recipe.toml` as resolved, `run.json` (this file's `Run.record`), `adapter/`,
`checkpoints/`, `log.jsonl`, `samples.jsonl`, `report.html` and `*.gguf`. Rooms meet here: what one room
finished, the next one finds. A killed process leaves the last good state, never half a file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rig
from rig.atomic import write_text
from rig.errors import RigError, WrongUse
from rig.paths import shell_word

RECORD = "run.json"
STATES = ("planned", "training", "trained", "exported", "checked")


class Run:
    """One run folder; `record` is what `run.json` says, changed only through `note`."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @classmethod
    def create(cls, path: Path, *, recipe: str, base: str) -> Run:
        """Make a new run in state `planned`; a folder that already holds a run is refused.

        `recipe` is the resolved recipe as TOML, `base` the model as the recipe names it.
        """
        if (path / RECORD).exists():
            raise WrongUse(
                f"{path} already holds a run: resume it (rig train --resume {shell_word(path)}) "
                f"or give another name (--name)."
            )
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, {})
        write_text(path / "recipe.toml", recipe)
        run.update_record("planned", base=base, rig=rig.__version__, created=_now())
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run folder; anything else is refused with a sentence."""
        record = path / RECORD
        if not record.is_file():
            raise WrongUse(
                f"{path} is not a run folder (it has no {RECORD}): give one that `rig train` made"
                f"{_known_runs(path)}."
            )
        try:
            found = json.loads(record.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise RigError(f"{record} is damaged ({error}): restore it or train again.") from error
        if not isinstance(found, dict) or found.get("state") not in STATES:
            raise RigError(f"{record} names no known state: restore it or train again.")
        return cls(path, found)

    @property
    def state(self) -> str:
        """How far the run has come: one of `STATES`."""
        return str(self.record.get("state", "planned"))

    @property
    def base_model(self) -> str:
        """The base model as the recipe named it: `toy`, a folder, or a hub id."""
        return str(self.record["base"])

    @property
    def adapter_folder(self) -> Path:
        """The finished PEFT adapter; `reply_format.json` lies beside its weights."""
        return self.path / "adapter"

    @property
    def checkpoint_folder(self) -> Path:
        """Whole checkpoints of the trainer, newest with the highest number."""
        return self.path / "checkpoints"

    def gguf_files(self) -> list[Path]:
        """The exported models, the last exported first."""
        exports = self.record.get("exports", [])
        if not isinstance(exports, list) or not all(
            isinstance(item, dict) and isinstance(item.get("file"), str) for item in exports
        ):
            raise RigError(
                f"{self.path / RECORD} is damaged (exports): restore it or export again."
            )
        named = [self.path / item["file"] for item in exports]
        return [path for path in reversed(named) if os.path.isfile(path)]  # any text is asked

    def update_record(self, state: str | None = None, **fields: Any) -> None:
        """Write `fields` (and the new state) into `run.json` at once; dictionaries are merged."""
        record = dict(self.record)
        for key, value in fields.items():
            old = record.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            record[key] = {**old, **value} if both else value  # type: ignore[dict-item]
        if state is not None:
            if state not in STATES:
                raise ValueError(f"no state called {state!r}")
            record["state"] = state
        record["updated"] = _now()
        write_text(
            self.path / RECORD, json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"
        )
        self.record = record

    @contextlib.contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the run alone; a second process is refused at once, a dead one holds nothing."""
        import filelock

        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RigError(
                f"Another process is working on {self.path}: wait for it, or stop it first."
            ) from None
        try:
            yield
        finally:
            lock.release()


def find_run(name: str) -> Path:
    """A run by path, or by its name under `runs/`.

    >>> find_run("no/such/folder") == Path("no/such/folder")
    True
    """
    path = Path(name)
    inside = Path("runs") / name
    return inside if not path.exists() and inside.is_dir() else path


def _known_runs(path: Path) -> str:
    names = sorted(p.parent.name for p in Path("runs").glob(f"*/{RECORD}"))
    return f"; there are: {', '.join(names)}" if names else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
