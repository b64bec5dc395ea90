"""What a GGUF file says of itself: name, origin, licence, and rig's own keys.

The keys are those of llama.cpp's converter (`gguf.Metadata` reads README.md, config.json and
generation_config.json), with the run's name and its base in their places where there is a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from yaml import YAMLError  # type: ignore[import-untyped]

import rig
from export.checkpoint.config import read_generation_config
from export.checkpoint.source import ExportSource
from rig.errors import RigError
from rig.model.foreign import read_foreign_text

MOST_CARD, MOST_PARTS = 1 << 20, 10_000
"""Bytes of a README.md, and things that its head names."""
SAMPLING = {
    "sampling_top_k": "top_k",
    "sampling_top_p": "top_p",
    "sampling_min_p": "min_p",
    "sampling_temp": "temperature",
    "sampling_penalty_repeat": "repetition_penalty",
}
"""What generation_config.json may advise, under GGUF's name for it."""


def write_general_keys(writer: gguf.GGUFWriter, source: ExportSource, parameters: int) -> None:
    """Write the general keys; `parameters` is the number of weights."""
    folder = source.folder
    named = Path(source.hub_id or folder.resolve().name)
    try:
        metadata = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(),
            _read_card(folder),
            gguf.Metadata.load_hf_parameters(folder),
            named,
            parameters,
        )
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, YAMLError) as error:
        raise RigError(
            f"{folder / 'README.md'} has a head that can't be read ({str(error)[:200]}): mend or remove it."
        ) from error
    for name, value in vars(metadata).items():
        if isinstance(value, dict):
            setattr(metadata, name, None)
        elif name in ("license", "tags", "languages") and isinstance(value, list):
            setattr(metadata, name, [one for one in value if isinstance(one, str)] or None)
    advice = read_generation_config(folder)
    for name, key in SAMPLING.items():
        setattr(metadata, name, advice.get(key))
    if source.adapter is not None:
        _taught(metadata, source)
    if metadata.name is None:
        metadata.name = source.name
    if metadata.size_label is None:
        metadata.size_label = gguf.size_label(parameters, parameters, 0, 0)
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in rig_keys(source).items():
        writer.add_string(key, value)


def _read_card(folder: Path) -> dict[str, Any]:
    """The head of README.md; one that names a few things a million times over is refused."""
    path = folder / "README.md"
    if not path.exists():
        return {}
    read_foreign_text(path, most=MOST_CARD)
    found: dict[str, Any] = _texts(gguf.Metadata.load_model_card(folder), [MOST_PARTS])
    return found


def _texts(part: Any, left: list[int]) -> Any:
    """The same with texts for numbers, dates and such, which GGUF has no place for."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("it says too much")
    if isinstance(part, dict):
        return {str(key): _texts(one, left) for key, one in part.items() if one is not None}
    if isinstance(part, list):
        return [_texts(one, left) for one in part if one is not None]
    return str(part)


def rig_keys(source: ExportSource) -> dict[str, str]:
    """rig's keys: how the model was taught to speak, by which version, onto what."""
    keys = {"rig.version": rig.__version__, "rig.base": source.portable_base}
    if source.run is not None:
        keys["rig.run"] = source.name
    return keys | source.reply_format.to_metadata()


def _taught(metadata: gguf.Metadata, source: ExportSource) -> None:
    """An adapter makes it another model: its own name, and the base as what it comes from."""
    base: dict[str, str] = {"name": metadata.name or source.base}
    if source.hub_id:
        organisation, name = source.hub_id.split("/", 1)
        base = {
            "name": gguf.Metadata.id_to_title(name),
            "organization": gguf.Metadata.id_to_title(organisation),
            "repo_url": f"https://huggingface.co/{source.hub_id}",
        }
    metadata.name = source.name
    metadata.base_models = [base]
