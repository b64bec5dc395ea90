"""What a run will cost, counted and predicted: `pytest tests/test_train_plan.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import rig.cli
from rig.errors import RigError, WrongUse
from train import recipe as recipes
from train.plan import model_shape, plan

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
    assert model_shape.load_shape(name).parameter_count == parameters


@pytest.mark.parametrize(
    "name",
    ["unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct",
     "unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit", "QWEN/qwen3-0.6b"],
)  # fmt: skip
def test_a_mirror_has_the_shape_of_the_original(name: str) -> None:
    assert model_shape.shipped_config(name) is not None


def test_a_stranger_has_no_shipped_shape() -> None:
    assert model_shape.shipped_config("someone/Llama-3.1-8B-Instruct") is None


FOLDERS = [
    "Llama-3.1-8B-Instruct", "Llama-3.2-1B-Instruct", "Mistral-7B-Instruct-v0.3", "Qwen2.5-0.5B-Instruct",
    "Qwen3-0.6B", "Qwen3-1.7B", "SmolLM2-360M", "unsloth-meta-llama-3.1-8b-instruct-bnb-4bit",
]  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
def test_arithmetic_counts_what_the_real_architecture_has(shared: Path, folder: str) -> None:
    path = shared / "data" / "models" / folder
    counted = model_shape.load_shape(str(path))
    built = model_shape._of_meta(json.loads((path / "config.json").read_text("utf-8")), path)
    assert counted.parameter_count == built.parameter_count
    assert counted.small == built.small
    assert counted.kv_width == built.kv_width
    assert {linear: linear.parameter_count for linear in counted.linears} == {
        linear: linear.parameter_count for linear in built.linears
    }


def test_an_unknown_family_is_built_without_memory(shared: Path) -> None:
    found = model_shape.load_shape(str(shared / "data" / "models" / "gemma-3-1b-it"))
    assert found.parameter_count == 999_885_952
    assert found.tied


def plan_of(*settings: str, recipe: str = "llama-3.1-8b-gsm8k-12gb") -> dict[str, Any]:
    return plan.make_plan(recipes.load_recipe(recipe, settings))


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

    from train.model.backends import TOY

    found = recipes.load_recipe("toy-arithmetic")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TOY))
        model = get_peft_model(
            model, LoraConfig(r=found.lora.r, target_modules=list(found.lora.targets))
        )
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert made == plan.make_plan(found)["trainable_parameters"]


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
    assert found["steps_per_epoch"] == 7473 // 12
    assert found["tokens_per_step"] == 72 * (256 + 384)
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
    from train.data import sources

    def unreachable(*_: Any, **__: Any) -> None:
        raise RigError("The hub can't be reached.")

    monkeypatch.setattr(sources, "read_source", unreachable)
    found = plan_of("data.source=someone/somedata")
    assert found["steps_per_epoch"] is None
    assert "The hub can't be reached." in found["notes"]
    assert found["peak_gib"] > 5


@pytest.mark.parametrize(
    ("config", "said"),
    [("{", "is damaged"), ('{"model_type": "llama"}', "lacks 'hidden_size'"),
     ('{"model_type": "nosuch"}', "can't be counted")],
)  # fmt: skip
def test_a_damaged_config_is_one_sentence(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config, "utf-8")
    with pytest.raises(RigError, match=said):
        model_shape.load_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("no/such/folder/here", "There is no model at"), ("plainword", "There is no model at")],
)
def test_a_model_that_is_none(name: str, said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        model_shape.load_shape(name)


GIB = 2**30


def refused(gib: float, *settings: str, backend: str = "trl", gpus: int = 1) -> str:
    found = recipes.load_recipe("llama-3.1-8b-gsm8k-12gb", settings)
    with pytest.raises(RigError) as error:
        plan.refuse_oversized(found, backend, int(gib * GIB), gpus=gpus)
    return str(error.value.message)


@pytest.mark.parametrize(
    ("gib", "settings", "gpus"),
    [
        (9.4, (), 1),
        (8.0, (), 1),
        (12.0, ("schedule.micro_batch=72",), 1),
        (12.0, ("schedule.prompts_per_step=32",), 1),
        (12.0, ("schedule.prompts_per_step=32", "schedule.micro_batch=48"), 2),
        (24.0, ("grpo.max_completion_length=2048", "schedule.micro_batch=24"), 1),
    ],
)
def test_what_can_not_fit_is_refused_with_what_does(
    gib: float, settings: tuple[str, ...], gpus: int
) -> None:
    said = refused(gib, *settings, gpus=gpus)
    assert "it learns the same" in said
    knobs = re.findall(r"--set (\S+=\d+)", said)
    assert knobs
    found = recipes.load_recipe("llama-3.1-8b-gsm8k-12gb", [*settings, *knobs])
    plan.refuse_oversized(found, "trl", int(gib * GIB), gpus=gpus)
    assert plan.make_plan(found, gpus=gpus)["peak_gib"] <= gib
    before = recipes.load_recipe("llama-3.1-8b-gsm8k-12gb", settings)
    same = ("completions_per_step", "trainable_parameters", "tokens_per_step", "steps_per_epoch")
    assert [plan.make_plan(found)[key] for key in same] == [
        plan.make_plan(before)[key] for key in same
    ]


def test_what_is_near_the_limit_is_tried() -> None:
    found = recipes.load_recipe("llama-3.1-8b-gsm8k-12gb")
    plan.refuse_oversized(found, "trl", int(12 * GIB))
    assert plan.make_plan(found)["peak_gib"] > 10
    plan.refuse_oversized(found, "trl", int(10 * GIB))  # predictions err by up to a tenth


@pytest.mark.parametrize(
    ("gib", "settings", "backend"),
    [
        (5.0, (), "trl"),
        (12.0, ("model.precision=16bit",), "trl"),
        (8.0, ("schedule.prompts_per_step=8",), "unsloth"),
    ],
)
def test_what_no_portion_makes_fit_says_what_else_to_take(
    gib: float, settings: tuple[str, ...], backend: str
) -> None:
    assert "Take a smaller model" in refused(gib, *settings, backend=backend)


def test_a_model_that_can_not_be_counted_is_left_to_its_loader(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}', "utf-8")
    found = recipes.load_recipe("llama-3.1-8b-gsm8k-12gb", [f"model.name={tmp_path}"])
    with pytest.raises(RigError, match="unheard-of"):
        plan.make_plan(found)
    plan.refuse_oversized(found, "trl", GIB)
