"""From a source to finished GGUF files: plan everything, refuse what cannot end well, then one pass."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import gguf

from export.checkpoint import adapter as adapters
from export.checkpoint import tokenizer as checkpoint_tokenizer
from export.checkpoint.architecture import CheckpointModel, OutputTensor
from export.checkpoint.config import read_json
from export.checkpoint.safetensors import StoredTensor, folder_weights, refuse_odd_types, same_bytes
from export.checkpoint.source import ExportSource
from export.gguf import metadata
from export.gguf import writer as gguf_writer
from export.gguf.convert import ConversionPass, OutputFile
from export.llama import refuse_unloadable
from export.progress import ProgressBar
from export.quantise import quant_types
from export.quantise.ggml import Floats
from rig.atomic import atomic_file
from rig.errors import RigError

Importance = Mapping[str, Floats]
HEADROOM = 64 << 20
"""Bytes left free on the disk, so that the export is not what fills it."""


@dataclass(frozen=True)
class ExportPlan:
    """Everything known before the first byte: what is written, and what it is made of."""

    source: ExportSource
    model: CheckpointModel
    parts: list[OutputTensor]
    tensors: dict[str, StoredTensor]
    changes: dict[str, adapters.Change]
    vocabulary: checkpoint_tokenizer.Vocabulary
    tokenizer: Path
    """The folder whose tokenizer it is."""

    @property
    def conversion_pass(self) -> ConversionPass:
        """The work itself."""
        return ConversionPass(self.parts, self.tensors, self.changes)

    def choose_tensor_types(
        self, file_type: str, importance: Importance | None, *, refuse: bool = True
    ) -> dict[str, gguf.GGMLQuantizationType]:
        """The format of every tensor in a file of this type; refused where it would be garbage."""
        shapes = [(part.name, part.shape) for part in self.parts]
        chosen = quant_types.choose_types(
            file_type, shapes, self.model.mix_shape, importance=importance is not None
        )
        if refuse:
            quant_types.refuse_without_importance(file_type, chosen, set(importance or ()))
        return chosen


@dataclass(frozen=True)
class ExportedFile:
    """One finished file."""

    path: Path
    quant: str
    bytes: int
    sha256: str


def plan_export(source: ExportSource) -> ExportPlan:
    """Read every header and configuration, and fit them together; nothing is written."""
    tensors = folder_weights(source.folder)
    refuse_odd_types(tensors, source.folder)
    model = CheckpointModel(read_json(source.folder / "config.json"), str(source.folder))
    changes: dict[str, adapters.Change] = {}
    tensors = {name.replace("language_model.", ""): tensor for name, tensor in tensors.items()}
    if source.adapter is not None:
        adapter = adapters.load_adapter(source.adapter)
        tensors = adapters.fit_to_base(adapter, tensors, tied=model.tied)
        changes = adapter.changes
    _untie(model, tensors, changes)
    parts = model.output_tensors({name: tensor.shape for name, tensor in tensors.items()})
    tokenizer = _tokenizer_folder(source, model)
    words = checkpoint_tokenizer.load_vocabulary(
        tokenizer,
        model.vocabulary,
        gemma=model.name.startswith("Gemma"),
        template_from=source.adapter,
    )
    return ExportPlan(source, model, parts, tensors, changes, words, tokenizer)


def write_gguf_files(
    plan: ExportPlan,
    outputs: Mapping[str, Path],
    *,
    importance: Importance | None = None,
    keys: Mapping[str, str | int] | None = None,
    threads: int = 2,
    title: str = "exporting",
) -> list[ExportedFile]:
    """Write one file for each type of `outputs`, all of them whole or none under its final name.

    `keys` are further metadata, such as where an importance matrix came from; `title` stands before the
    progress bar.
    """
    kinds = {quant: plan.choose_tensor_types(quant, importance) for quant in outputs}
    work = plan.conversion_pass
    needed = sum(work.total_bytes(kinds[quant]) + HEADROOM for quant in outputs)
    refuse_full_disk(list(outputs.values()), needed)
    made = []
    with ExitStack() as stack:
        temporary = {
            quant: stack.enter_context(atomic_file(path)) for quant, path in outputs.items()
        }
        targets = []
        for quant, path in temporary.items():
            target = OutputFile(kinds[quant], path, importance or {})
            writer = _writer(plan, quant, path)
            for key, value in (keys or {}).items():
                add = writer.add_string if isinstance(value, str) else writer.add_uint32
                add(key, value)
            work.write_header(writer, target)
            targets.append(target)
        with ProgressBar(work.parameter_count, len(plan.parts), title=title) as bar:
            work.write_tensors(targets, threads, bar)
        for path in temporary.values():
            refuse_unloadable(path)
        for quant, path in temporary.items():
            made.append(ExportedFile(outputs[quant], quant, path.stat().st_size, file_sha256(path)))
    return made


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_full_disk(paths: Sequence[Path], needed: int) -> None:
    """Stop before the first byte when the files would not fit; `needed` in bytes."""
    free = free_disk(paths[0].parent)
    if free < needed:
        raise RigError(
            f"{paths[0].parent} has {free / 1e9:.1f} GB free, the export needs {needed / 1e9:.1f} GB: "
            f"free some space, or name another place with --out."
        )


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    return shutil.disk_usage(there).free


def remove_leftovers(path: Path, age: float) -> None:
    """Remove what a killed export left beside `path`: hidden parts untouched for `age` seconds."""
    for part in path.parent.glob(f".*{path.name}.*.part"):
        with suppress(FileNotFoundError):  # another export may just have finished it
            last = max(one.stat().st_mtime for one in (part, *part.glob("*")))
            if time.time() - last < age:
                continue
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()


def _writer(plan: ExportPlan, quant: str, path: Path) -> gguf_writer.FastGGUFWriter:
    writer = gguf_writer.FastGGUFWriter(path, gguf.MODEL_ARCH_NAMES[plan.model.architecture.gguf])
    metadata.write_general_keys(writer, plan.source, plan.conversion_pass.parameter_count)
    plan.model.write_hyperparameters(writer)
    writer.add_file_type(quant_types.FILE_TYPES[quant][0])
    plan.vocabulary.write_tokenizer_keys(writer)
    return writer


def _untie(
    model: CheckpointModel, tensors: dict[str, StoredTensor], changes: Mapping[str, adapters.Change]
) -> None:
    """Drop a head that is only the tied embeddings again; take the vocabulary that is really there."""
    table, head = tensors.get("model.embed_tokens.weight"), tensors.get("lm_head.weight")
    trained = {"model.embed_tokens.weight", "lm_head.weight"} & {
        name for name, change in changes.items() if change.a is not None
    }
    if model.tied and table and head and not trained and same_bytes(table, head):
        del tensors["lm_head.weight"]
    saved = changes.get("model.embed_tokens.weight")
    if table and saved is not None and saved.whole is not None:
        model.vocabulary = table.shape[0]


def _tokenizer_folder(source: ExportSource, model: CheckpointModel) -> Path:
    """The base's tokenizer; the adapter's own only when it brought embeddings for more tokens."""
    if source.adapter is None or model.vocabulary == model.config["vocab_size"]:
        return source.folder
    has = (source.adapter / "tokenizer.json").is_file()
    return source.adapter if has else source.folder
