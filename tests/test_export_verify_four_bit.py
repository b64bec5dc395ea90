"""How far an export is from an adapter's 4-bit training: `pytest tests/test_export_verify_four_bit.py`."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from export import plan as export_plan
from export.checkpoint import source
from export.llama import LlamaModel
from export.verify import logits as verify_logits
from export.verify import tokens, torch_reference
from rig.cli import main
from rig.model.toy import toy_folder as toy
from rig.runs import Run
from support import tiny_models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
"""The sixteen values of NormalFloat4, as the QLoRA paper lists them (arXiv 2305.14314, appendix E)."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model, as it is and in 4 bits of another kind (FP4), and an adapter trained on it."""
    root = tmp_path_factory.mktemp("four")
    shutil.copytree(toy(), root / "base", ignore=shutil.ignore_patterns("__pycache__"))
    tiny_models.make_adapter(root / "adapter", root / "base", targets="(q|v|up)_proj", size=0.02)
    options = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        root / "base", dtype=torch.float32, quantization_config=options
    )
    model.save_pretrained(root / "base-fp4")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(here: Path, precision: str) -> str:
    recipe = f'[model]\nname = "base"\nprecision = "{precision}"\n'
    run = Run.create(here / "runs/taught", recipe=recipe, base="base")
    shutil.copytree(here / "adapter", run.adapter_folder)
    run.update_record("trained")
    return "taught"


def trained_on(here: Path, base: str) -> str:
    path = here / "adapter/adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    tiny_models.write_json(path, config | {"base_model_name_or_path": base})
    return "adapter"


def export(*arguments: str) -> dict[str, Any]:
    words = ["export", *arguments, "--gguf", "--quant", "F16", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)["check"]
    return found


@pytest.fixture(scope="module")
def by_hand(made: Path) -> tuple[float, float]:
    """KL and top-1 by the definition: each block of 64 weights scaled by its largest, rounded to NF4."""
    from peft import PeftModel

    plan = export_plan.plan_export(source.find_source(str(made / "base")))
    export_plan.write_gguf_files(plan, {"F16": made / "base-F16.gguf"}, threads=1)
    with LlamaModel(made / "base-F16.gguf", vocabulary=True) as loaded:
        texts = verify_logits.sample_sequences(loaded, tokens.sample_texts())

    def logits(round_base: bool) -> list[Any]:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            made / "base", dtype=torch.float32
        )
        for name, module in model.named_modules():
            if round_base and isinstance(module, torch.nn.Linear) and name != "lm_head":
                blocks = module.weight.data.numpy().reshape(-1, 64)
                largest = np.abs(blocks).max(axis=1, keepdims=True)
                nearest = np.abs((blocks / largest)[:, :, None] - NF4).argmin(axis=2)
                rounded = (NF4[nearest] * largest).reshape(module.weight.shape)
                module.weight.data = torch.from_numpy(rounded)
        model = PeftModel.from_pretrained(model, str(made / "adapter")).eval()
        with torch.inference_mode():
            return [model(torch.tensor([text])).logits[0].numpy() for text in texts]

    found = [
        verify_logits.kl_divergence(one, other)
        for one, other in zip(logits(True), logits(False), strict=True)
    ]
    sizes = [len(text) for text in texts]
    kl, same = (float(np.average([pair[n] for pair in found], weights=sizes)) for n in (0, 1))
    return kl, same


def test_a_base_that_was_quantised_while_it_loaded_is_quantised_again_for_the_check(
    here: Path, by_hand: tuple[float, float]
) -> None:
    found = export(run_of(here, "4bit"))
    kl, same = by_hand
    assert kl > 1e-3  # four bits are felt
    # The block scales are quantised too, which the definition by hand leaves out.
    assert found["adapter"]["four_bit_kl"] == pytest.approx(kl, rel=0.15)
    assert found["adapter"]["four_bit_top1"] == pytest.approx(same, abs=0.03)
    assert found["files"]["taught-F16.gguf"]["trained_kl"] < 1e-4  # what was written is right


def test_a_base_that_lies_there_in_4_bits_is_taken_as_it_is(
    here: Path, by_hand: tuple[float, float]
) -> None:
    found = export(trained_on(here, "base-fp4"), "--base", "base")
    assert found["adapter"]["four_bit_kl"] > 1.2 * by_hand[0]  # FP4 is the coarser one


def test_recipe_or_name_of_the_base_say_whether_it_was_in_4_bits(here: Path) -> None:
    def base_of(model: str, base: str | None = None) -> Path | None:
        return torch_reference.four_bit_base(source.find_source(model, base=base))

    assert base_of(run_of(here, "16bit")) is None
    assert base_of(trained_on(here, "base")) is None
    assert base_of(trained_on(here, "base-fp4"), "base") == Path("base-fp4")
    elsewhere = trained_on(here, "someone/base-unsloth-bnb-4bit")
    assert base_of(elsewhere, "base") == Path("base")  # to be quantised
    shutil.rmtree(here / "runs")
    assert base_of(run_of(here, "4bit")) == Path("base")


def test_without_bitsandbytes_it_is_noted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    found = export(run_of(here, "4bit"))
    assert "four_bit_kl" not in found["adapter"]
    assert any(
        "trained on a 4-bit base" in n and "bitsandbytes is not" in n for n in found["notes"]
    )


def test_a_step_larger_than_the_training_is_noted_below_the_table(here: Path) -> None:
    tiny_models.make_adapter(here / "adapter", here / "base", targets="q_proj", size=0.002)
    done = CliRunner().invoke(main, ["export", run_of(here, "4bit"), "--gguf", "--quant", "Q8_0"])
    assert done.exit_code == 0, done.output
    assert "It was trained on a 4-bit base; on the 16-bit one it differs" in done.stdout
    assert "changes more than the adapter does" in done.stdout
