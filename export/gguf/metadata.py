"""What a GGUF file says of itself: name, origin, licence, and rig's own keys.

The keys are those of llama.cpp's converter (`gguf.Metadata` reads README.md, config.json and
generation_config.json), with the run's name and its base in their places where there is a run.
"""

from __future__ import annotations

from pathlib import Path

import gguf

import rig
from export.checkpoint.source import ExportSource
from export.checkpoint.tokenizer import read_json

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
    metadata = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(),
        gguf.Metadata.load_model_card(folder),
        gguf.Metadata.load_hf_parameters(folder),
        named,
        parameters,
    )
    advice = read_json(folder / "generation_config.json")
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
