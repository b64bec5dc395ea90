"""pytest tests/test_export_checkpoint_source.py: the base that an adapter names is here, or asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from export.checkpoint.source import find_source
from rig.errors import RigError, WrongUse


def adapter_on(folder: Path, base: str) -> Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "named",
    [
        "/kaggle/input/llama-3.1/transformers/8b-instruct/1",
        "/content/drive/MyDrive/base",
        "C:\\Users\\me\\models\\llama",
        "./checkpoints/base",
        "llama-3-8b",
    ],
)
def test_a_base_that_is_not_here_is_asked_for(tmp_path: Path, named: str) -> None:
    adapter = adapter_on(tmp_path / "adapter", named)
    with pytest.raises(
        WrongUse, match=r"as its base, which is not here: give .* with --base"
    ) as error:
        find_source(str(adapter))
    assert named in error.value.message
    with pytest.raises(WrongUse, match="There is no nowhere/at/all: give a run"):
        find_source(str(adapter), base="nowhere/at/all")


@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "gptq"])
def test_a_quantised_base_is_no_base_for_an_adapter(tmp_path: Path, method: str) -> None:
    base = tmp_path / "bnb"
    base.mkdir()
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "quantization_config": {"quant_method": method},
    }
    (base / "config.json").write_text(json.dumps(settings))
    adapter = adapter_on(tmp_path / "adapter", str(base))
    said = (
        f"names {base} as its base, whose weights are quantised ({method}): give the 16-bit model"
    )
    with pytest.raises(RigError, match=re.escape(said) + ".*--base"):
        find_source(str(adapter))
