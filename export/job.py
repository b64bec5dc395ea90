"""One export from beginning to end: the pass, the check, what is noted in the run, what is told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export import lora_gguf, merged_model, modelfile, plan
from export.checkpoint.source import ExportSource
from export.plan import HEADROOM, ExportedFile, ExportPlan
from export.progress import show_stages
from export.quantise import imatrix, quant_types
from export.quantise.ggml import Floats
from export.verify.report import CheckReport
from rig.atomic import write_text
from rig.errors import RigError, WrongUse
from rig.model.gguf import is_gguf, read_header
from rig.paths import shell_word

SIXTEEN = ("F16", "BF16", "F32")
"""Types that the others are held against."""


@dataclass
class ExportResult:
    """Everything that one command made and found."""

    source: ExportSource
    files: list[ExportedFile] = field(default_factory=list)
    adapter: ExportedFile | None = None
    merged: Path | None = None
    modelfile: Path | None = None
    imatrix: Path | None = None
    report: CheckReport | None = None

    def to_json(self, seconds: float) -> dict[str, Any]:
        """The stable object of `--json`."""
        return {
            "name": self.source.name,
            "base": self.source.base,
            "files": [_entry(made, made.path) for made in self.files],
            "adapter": _entry(self.adapter, self.adapter.path) if self.adapter else None,
            "merged": _named(self.merged),
            "modelfile": _named(self.modelfile),
            "imatrix": _named(self.imatrix),
            "check": self.report.to_json() if self.report else None,
            "seconds": round(seconds, 1),
        }


class ExportJob:
    """The exports of one source, one after the other."""

    def __init__(self, source: ExportSource, threads: int) -> None:
        self.source, self.threads = source, threads
        self.plan: ExportPlan = plan.plan_export(source)
        self.result = ExportResult(source)

    def write_ggufs(
        self,
        outputs: Mapping[str, Path],
        *,
        matrix: Path | None,
        check: bool,
        with_modelfile: bool,
    ) -> None:
        """Write the GGUF files, check them, and leave a Modelfile beside them."""
        for path in outputs.values():
            self._sweep(path)
        importance, keys = self._importance(matrix, next(iter(outputs.values())))
        with self._reference(outputs if check else {}) as extra:
            targets = {**outputs, **extra}
            made = plan.write_gguf_files(
                self.plan, targets, importance=importance, keys=keys, threads=self.threads
            )
            self.result.files = [one for one in made if one.quant in outputs]
            self._note_files()
            if with_modelfile:
                self._modelfile(self.result.files[-1].path)
            if check:
                sixteen = [one.path for one in made if one.quant in SIXTEEN]
                self._check([one.path for one in self.result.files], sixteen)

    def check_files(self, files: Sequence[tuple[Path, str]]) -> None:
        """Check files that are there already, as (path, type)."""
        sixteen = [path for path, quant in files if quant in SIXTEEN]
        paths = [path for path, _ in files]
        with self._reference({} if sixteen else {"": paths[0]}) as extra:
            if extra:
                made = plan.write_gguf_files(self.plan, extra, threads=self.threads)
                sixteen = [one.path for one in made]
            self._check(paths, sixteen)

    def write_lora(self, path: Path) -> None:
        """Write the adapter alone."""
        self._sweep(path)
        self.result.adapter = lora_gguf.write_lora_gguf(self.plan, path)
        if self.source.run is not None:
            self.source.run.update_record(lora=self._relative(self.result.adapter))

    def write_merged(self, folder: Path) -> None:
        """Write base and adapter as a model folder."""
        self._sweep(folder)
        merged_model.write_merged_model(self.plan, folder, threads=self.threads)
        self.result.merged = folder
        if self.source.run is not None:
            self.source.run.update_record(merged=os.path.relpath(folder, self.source.run.path))

    def _sweep(self, path: Path) -> None:
        """Remove what a killed export left of `path`; only a run, which is locked, has no other exporter."""
        plan.remove_leftovers(path, 0.0 if self.source.run else 600.0)

    def _check(self, files: Sequence[Path], sixteen: Sequence[Path]) -> None:
        from export.verify.verify import verify_files

        with show_stages("checking") as tell:
            report = verify_files(
                self.plan, files, sixteen[0] if sixteen else None, self.threads, tell
            )
        self.result.report = report
        if self.source.run is not None:
            state = None if report.problems else "checked"
            self.source.run.update_record(state, check=None)
            self.source.run.update_record(state, check=report.to_json())

    def _importance(
        self, given: Path | None, beside: Path
    ) -> tuple[dict[str, Floats] | None, dict[str, str | int]]:
        """The importance matrix of a file, or one computed from a text with a Q8_0 file made for it."""
        if given is None:
            return None, {}
        if imatrix.is_text(given):
            scratch = beside.parent / f".{beside.name}.imatrix.part"
            plan.write_gguf_files(
                self.plan, {"Q8_0": scratch}, threads=self.threads, title="preparing"
            )
            from export.llama import useful_threads

            threads = useful_threads(self.threads, self.plan.conversion_pass.parameter_count)
            try:
                with show_stages(f"reading {given.name}") as tell:
                    matrix = imatrix.compute_imatrix(scratch, given, threads=threads, tell=tell)
            finally:
                scratch.unlink(missing_ok=True)
            given = beside.with_name(f"{self.source.name}.imatrix.gguf")
            imatrix.write_imatrix(matrix, given)
            self.result.imatrix = given
        matrix = imatrix.read_imatrix(given)
        columns = {part.name: part.shape[-1] for part in self.plan.parts}
        imatrix.refuse_other_model(matrix, columns, given)
        return matrix.mean_squares(), {
            "quantize.imatrix.file": given.name,
            "quantize.imatrix.dataset": Path(matrix.datasets[0]).name if matrix.datasets else "",
            "quantize.imatrix.entries_count": len(matrix.sums),
            "quantize.imatrix.chunks_count": matrix.chunks,
        }

    @contextmanager
    def _reference(self, outputs: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
        """A 16-bit file to hold `outputs` against, gone afterwards; none where the disk has no room."""
        if not outputs:
            yield {}
            return
        beside = next(iter(outputs.values()))
        work = self.plan.conversion_pass
        needed = sum(
            work.total_bytes(self.plan.choose_tensor_types(quant, None, refuse=False)) + HEADROOM
            for quant in (*filter(None, outputs), "F16")
        )
        if set(outputs) & set(SIXTEEN) or plan.free_disk(beside.parent) < needed:
            yield {}
            return
        path = beside.parent / f".{beside.name}.reference.part"
        try:
            yield {"F16": path}
        finally:
            path.unlink(missing_ok=True)

    def _modelfile(self, gguf_path: Path) -> None:
        path = gguf_path.parent / "Modelfile"
        text = modelfile.render_modelfile(
            gguf_path.name, self.plan.vocabulary, self.source.reply_format
        )
        write_text(path, text)
        self.result.modelfile = path

    def _note_files(self) -> None:
        """Keep the exports of a run in its record, the newest last."""
        run = self.source.run
        if run is None:
            return
        entries = [self._relative(one) for one in self.result.files]
        fresh = {entry["file"] for entry in entries}
        kept = [entry for entry in run.record.get("exports", []) if entry["file"] not in fresh]
        run.update_record("exported", exports=[*kept, *entries])

    def _relative(self, made: ExportedFile) -> dict[str, Any]:
        assert self.source.run is not None  # only runs keep a record
        place = os.path.relpath(made.path, self.source.run.path).replace(os.sep, "/")
        return _entry(made, Path(place))


def exported_files(source: ExportSource, out: Path | None) -> list[tuple[Path, str]]:
    """The files that `--check` is to look at: the run's own, or the one named."""
    if out is not None:
        if not out.is_file():
            raise WrongUse(f"There is no file {out} to check.")
        return [(out, _quant(out))]
    if source.run is None:
        raise WrongUse("--check of a model that is no run wants the GGUF file: --out FILE.")
    entries = source.run.record.get("exports", [])
    found = [(source.run.path / e["file"], str(e["quant"])) for e in entries]
    found = [(path, quant) for path, quant in found if path.is_file()]
    if not found:
        raise RigError(
            f"{source.run.path} has no exported file: rig export {shell_word(source.run.path)} --gguf."
        )
    return found


def output_path(source: ExportSource, quant: str, out: Path | None, count: int) -> Path:
    """Where the file of one type goes; `count` types are asked for."""
    name = f"{source.name}-{quant}.gguf"
    if out is None:
        path = source.run.path / name if source.run else Path(name)
    else:
        path = out / name if out.is_dir() else out
        if path == out and count > 1:
            raise WrongUse(f"--out {out} is one file for {count} types: name a folder that exists.")
    if path.is_file() and path.stat().st_size and not is_gguf(path):
        raise WrongUse(f"{path} is there already and is no GGUF file: name another with --out.")
    return path


def _quant(path: Path) -> str:
    """The type of a GGUF file, by its own word."""
    number = read_header(path).metadata.get("general.file_type")
    return next((name for name, (kind, _) in quant_types.FILE_TYPES.items() if kind == number), "?")


def _entry(made: ExportedFile, path: Path) -> dict[str, Any]:
    return {"file": str(path), "quant": made.quant, "bytes": made.bytes, "sha256": made.sha256}


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)
