"""What a run will cost, counted and predicted: `pytest tests/test_train_plan.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import rig.cli
from rig.errors import RigError, WrongUse
from train import memory, plan, shape
from train import recipe as recipes
from train.memory import GIB

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"

PARAMETERS = {  # as the models' pages count them
    LLAMA_8B: 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_a_model_is_counted_exactly(name: str, parameters: int) -> None:
    assert shape.of(name).parameters == parameters


@pytest.mark.parametrize(
    "name",
    ["unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct",
     "unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit", "QWEN/qwen3-0.6b"],
)  # fmt: skip
def test_a_mirror_has_the_shape_of_the_original(name: str) -> None:
    assert shape.shipped(name) is not None


def test_a_stranger_has_no_shipped_shape() -> None:
    assert shape.shipped("someone/Llama-3.1-8B-Instruct") is None


FOLDERS = [
    "Llama-3.1-8B-Instruct", "Llama-3.2-1B-Instruct", "Mistral-7B-Instruct-v0.3", "Qwen2.5-0.5B-Instruct",
    "Qwen3-0.6B", "Qwen3-1.7B", "SmolLM2-360M", "unsloth-meta-llama-3.1-8b-instruct-bnb-4bit",
]  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
def test_arithmetic_counts_what_the_real_architecture_has(shared: Path, folder: str) -> None:
    path = shared / "data" / "models" / folder
    counted = shape.of(str(path))
    built = shape._of_meta(json.loads((path / "config.json").read_text("utf-8")), path)
    assert counted.parameters == built.parameters
    assert counted.small == built.small
    assert counted.kv_width == built.kv_width
    assert {linear: linear.parameters for linear in counted.linears} == {
        linear: linear.parameters for linear in built.linears
    }


def test_an_unknown_family_is_built_without_memory(shared: Path) -> None:
    found = shape.of(str(shared / "data" / "models" / "gemma-3-1b-it"))
    assert found.parameters == 999_885_952
    assert found.tied


def plan_of(*settings: str, recipe: str = "llama-3.1-8b-gsm8k-12gb") -> dict[str, Any]:
    return plan.make(recipes.load(recipe, settings))


def test_llama_8b_with_rank_32_on_seven_modules_learns_83886080_parameters() -> None:
    found = plan_of("lora.r=32")
    assert found["trainable_parameters"] == 83_886_080
    assert found["per_module"] == {
        "q_proj": 8_388_608, "k_proj": 5_242_880, "v_proj": 5_242_880, "o_proj": 8_388_608,
        "gate_proj": 18_874_368, "up_proj": 18_874_368, "down_proj": 18_874_368,
    }  # fmt: skip


def test_peft_makes_as_many_parameters_as_the_plan_says() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from train.backends import EMBEDDED

    found = recipes.load("embedded-arithmetic")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(EMBEDDED))
        model = get_peft_model(
            model, LoraConfig(r=found.lora.r, target_modules=list(found.lora.targets))
        )
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert made == plan.make(found)["trainable_parameters"]


def test_the_command_prints_one_object_offline_in_a_moment(elsewhere: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c",
         "import sys; from rig.cli import main\n"
         "try: main(['train', 'llama-3.1-8b-gsm8k-12gb', '--plan', '--json'])\n"
         "finally: assert 'torch' not in sys.modules"],
        capture_output=True, text=True, check=True, env={"PATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert {"trainable_parameters", "peak_gib", "steps_per_epoch", "per_module"} <= set(found)
    assert found["trainable_parameters"] == 83_886_080
    assert found["steps_per_epoch"] == 7473 // 4
    assert found["tokens_per_step"] == 24 * (256 + 384)
    assert list(elsewhere.iterdir()) == [], "a plan leaves nothing behind"


def test_a_person_reads_a_page() -> None:
    done = CliRunner().invoke(rig.cli.main, ["train", "llama-3.1-8b-gsm8k-12gb", "--plan"])
    assert done.exit_code == 0
    assert "83,886,080 of 8,030,261,248 parameters (1.04%)" in done.output
    assert "GiB at the peak" in done.output


def test_a_target_that_the_model_lacks_names_the_nearest() -> None:
    with pytest.raises(WrongUse, match="did you mean 'q_proj'"):
        plan_of('lora.targets=["q_prj"]')


def test_data_out_of_reach_leaves_the_steps_open_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from train import reading

    def unreachable(*_: Any, **__: Any) -> None:
        raise RigError("The hub can't be reached.")

    monkeypatch.setattr(reading, "read", unreachable)
    found = plan_of("data.source=someone/somedata")
    assert found["steps_per_epoch"] is None
    assert found["notes"] == ["The hub can't be reached."]
    assert found["peak_gib"] > 5


@pytest.mark.parametrize(
    ("config", "said"),
    [("{", "is damaged"), ('{"model_type": "llama"}', "lacks 'hidden_size'"),
     ('{"model_type": "nosuch"}', "can't be counted")],
)  # fmt: skip
def test_a_damaged_config_is_one_sentence(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config, "utf-8")
    with pytest.raises(RigError, match=said):
        shape.of(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("no/such/folder/here", "There is no model at"), ("plainword", "There is no model at")],
)
def test_a_model_that_is_none(name: str, said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        shape.of(name)


# ----------------------------------------------------------------------------------------------------------
# Memory: 8B in 4 bits, rank 32, on one H200, 2026-11-22, GiB reserved: 6 completions learnt at once, prompts
# of about 170 tokens, 200 tokens each; unsloth kept room for 1,024, TRL was prepared by
# `prepare_model_for_kbit_training`.

MEASURED = [
    ("unsloth", 6, 7.45), ("unsloth", 24, 9.8), ("unsloth", 36, 11.4), ("unsloth", 48, 13.2),
    ("trl", 6, 11.8), ("trl", 24, 12.5),
]  # fmt: skip


@pytest.mark.parametrize(("backend", "generated", "measured"), MEASURED)
def test_the_prediction_is_within_ten_per_cent_of_what_was_measured(
    backend: str, generated: int, measured: float
) -> None:
    predicted = memory.estimate(
        shape.of(LLAMA_8B), precision="4bit", trainable=83_886_080, optim="paged_adamw_8bit",
        micro_batch=6, generated=generated, prompt=170, completion=200, checkpointing=True,
        backend=backend, window=1024, wide_embedding=backend == "trl",
    )  # fmt: skip
    assert predicted.peak / GIB == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("schedule.micro_batch=2", "schedule.micro_batch=12"),
        ("grpo.max_completion_length=128", "grpo.max_completion_length=1024"),
        ("lora.r=8", "lora.r=256"),
        ("model.precision=4bit", "model.precision=16bit"),
        ("schedule.optim=adamw_8bit", "schedule.optim=adamw_torch"),
        ("schedule.gradient_checkpointing=true", "schedule.gradient_checkpointing=false"),
        ("schedule.steps_per_batch=1", "schedule.steps_per_batch=8"),
    ],
)
def test_more_of_anything_takes_more(less: str, more: str) -> None:
    large = ("schedule.micro_batch=4",)
    assert plan_of(*large, less)["peak_gib"] < plan_of(*large, more)["peak_gib"]


def test_each_of_two_cards_takes_less_than_one_alone() -> None:
    found = recipes.load("llama-3.1-8b-gsm8k-12gb")
    assert plan.make(found, cards=2)["peak_gib"] < plan.make(found, cards=1)["peak_gib"]
