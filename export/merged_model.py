"""Base and adapter as one ordinary model folder: 16-bit safetensors, written in the same one pass.

For training on, for vLLM, for anything that reads Hugging Face folders. Tensors that the adapter does not
touch keep every bit.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from export.checkpoint.architecture import OutputTensor
from export.checkpoint.config import read_json
from export.checkpoint.safetensors import INDEX, SINGLE
from export.checkpoint.tokenizer_files import chat_template
from export.gguf.convert import ConversionPass, OutputFile, tensor_bytes
from export.plan import HEADROOM, ExportPlan, refuse_full_disk
from export.progress import ProgressBar
from rig.atomic import sync_folder
from rig.errors import RigError
from rig.model.reply_format import PLAIN

SHARD = 5_000_000_000
"""Most bytes of one weight file."""
COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja",
    "chat_template.json", "LICENSE", "NOTICE", "USE_POLICY.md",
)  # fmt: skip
DTYPES = {
    "BF16": (GGMLQuantizationType.BF16, "bfloat16"),
    "F16": (GGMLQuantizationType.F16, "float16"),
}


def write_merged_model(
    plan: ExportPlan, folder: Path, *, threads: int = 2, shard: int = SHARD
) -> list[Path]:
    """Write the merged model to `folder`, which must not exist yet or be empty; return the weight files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RigError(f"{folder} is there already: remove it, or name another with --out.")
    half = _sixteen_bits(plan)
    parts = [
        OutputTensor(t.name, t.shape, n) for n, t in plan.tensors.items() if not n.endswith(_UNUSED)
    ]
    size = sum(tensor_bytes(part.shape, DTYPES[half][0]) for part in parts)
    refuse_full_disk([folder], size + HEADROOM)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        _weights(plan, parts, half, temporary, threads, shard)
        _companions(plan, half, temporary)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(folder.glob("*.safetensors"))


_UNUSED = ".rotary_emb.inv_freq"


def _sixteen_bits(plan: ExportPlan) -> str:
    """The base's own 16-bit type; a 32-bit base becomes BF16, which keeps its range."""
    counts = [tensor.dtype for tensor in plan.tensors.values() if len(tensor.shape) > 1]
    return max(DTYPES, key=counts.count)


def _weights(
    plan: ExportPlan, parts: list[OutputTensor], half: str, folder: Path, threads: int, most: int
) -> None:
    shards = list(_shards(parts, half, most))
    where: dict[str, str] = {}
    numbers = sum(count_numbers(part) for part in parts)
    with ProgressBar(numbers, len(parts), title="merging") as bar:
        for number, mine in enumerate(shards):
            name = SINGLE
            if len(shards) > 1:
                name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
            target = _begin(mine, half, folder / name)
            ConversionPass(mine, plan.tensors, plan.changes).write_tensors([target], threads, bar)
            with (folder / name).open("rb+") as file:
                os.fsync(file.fileno())
            where |= {part.name: name for part in mine}
    if len(shards) > 1:
        total = sum(tensor_bytes(part.shape, DTYPES[half][0]) for part in parts)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / INDEX, index)


def count_numbers(part: OutputTensor) -> int:
    """Numbers in a tensor."""
    return tensor_bytes(part.shape, GGMLQuantizationType.BF16) // 2


def _shards(parts: list[OutputTensor], half: str, most: int) -> Iterator[list[OutputTensor]]:
    kept: list[OutputTensor] = []
    size = 0
    for part in parts:
        bytes_ = tensor_bytes(part.shape, DTYPES[half][0])
        if kept and size + bytes_ > most:
            yield kept
            kept, size = [], 0
        kept.append(part)
        size += bytes_
    yield kept


def _begin(parts: list[OutputTensor], half: str, path: Path) -> OutputFile:
    """Write the safetensors header and leave room for the weights."""
    kind = DTYPES[half][0]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for part in parts:
        end = at + tensor_bytes(part.shape, kind)
        header[part.name] = {"dtype": half, "shape": list(part.shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    start = 8 + len(head)
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, start + at)
    starts = {part.name: start + header[part.name]["data_offsets"][0] for part in parts}
    return OutputFile(dict.fromkeys(starts, kind), path, starts=starts)


def _companions(plan: ExportPlan, half: str, folder: Path) -> None:
    """Everything beside the weights: configuration, tokenizer, chat template, contract."""
    source = plan.source
    for name in COPIED:
        for origin in (plan.tokenizer, source.folder):
            if (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)
                break
    if source.adapter is not None and (template := chat_template(source.adapter)) is not None:
        for name in ("chat_template.json", "chat_template.jinja"):
            (folder / name).unlink(missing_ok=True)
        settings = read_json(folder / "tokenizer_config.json")
        _write_json(folder / "tokenizer_config.json", settings | {"chat_template": template})
    config = read_json(source.folder / "config.json")
    config.pop("quantization_config", None)
    inner = config.get("text_config", config)
    inner["vocab_size"] = plan.model.vocabulary
    config["tie_word_embeddings"] = plan.model.tied and "lm_head.weight" not in plan.tensors
    config["dtype" if "dtype" in config else "torch_dtype"] = DTYPES[half][1]
    _write_json(folder / "config.json", config)
    if source.reply_format != PLAIN:
        source.reply_format.save_to(folder)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
