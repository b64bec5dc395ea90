"""Recipes: what ships, what --set does, what a mistake says: `pytest tests/test_train_recipe.py`."""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import click
import pytest

from train import recipe as recipes
from train.plan import model_shape
from train.plan.unsupported import unsupported_settings
from train.recipe import Recipe, WatchTable
from train.rewards.binding import bind_reward
from train.trainer import trl_config

MINIMAL = """
about = "mine"
[model]
name = "toy"
[data]
source = "generated:arithmetic"
[[rewards]]
name = "correct"
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL, "utf-8")
    return str(path)


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_every_recipe_opens_with_its_command_and_loads(name: str) -> None:
    first = recipes.find_recipe(name).read_text("utf-8").partition("\n")[0]
    assert first == f"# rig train {name}"
    found = recipes.load_recipe(name)
    assert recipes.parse_recipe(recipes.to_toml(found), name) == found
    for reward in found.rewards:
        bind_reward(reward.name, reward.options, found.reply_format.to_reply_format())
    model = model_shape.load_shape(found.model.name)
    assert sum(model.lora_parameters(found.lora.r, found.lora.targets).values()) > 0
    fields = trl_config.grpo_config_fields(
        found,
        found.batch_sizes(rows=1000),
        output=Path("runs/x/checkpoints"),
        cuda=True,
        bf16=True,
    )
    assert fields["learning_rate"] == found.schedule.learning_rate


EXPLICIT = {
    "model": {"name", "precision", "attention"},
    "data": {"source", "held_out", "max_prompt_length"},
    "lora": {"r", "alpha", "dropout", "targets"},
    "grpo": {"num_generations", "max_completion_length", "temperature", "loss_type", "beta", "epsilon",
             "epsilon_high", "scale_rewards", "mask_truncated_completions"},
    "schedule": {"max_steps", "prompts_per_step", "micro_batch", "steps_per_batch", "learning_rate",
                 "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "adam_beta1", "adam_beta2",
                 "max_grad_norm", "gradient_checkpointing", "seed", "save_every"},
    "evaluation": {"problems", "batch"},
    "backend": {"name"},
}  # fmt: skip


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_shipped_recipe_leaves_nothing_that_matters_to_a_default(name: str) -> None:
    written = tomllib.loads(recipes.find_recipe(name).read_text("utf-8"))
    for table, keys in EXPLICIT.items():
        assert keys <= set(written[table]), table
    assert all({"name", "weight"} <= set(reward) for reward in written["rewards"])


def test_the_recipes_cover_what_was_promised() -> None:
    wanted = {
        "toy-arithmetic", "llama-3.1-8b-gsm8k-12gb", "llama-3.1-8b-gsm8k-24gb",
        "llama-3.1-8b-gsm8k-16bit", "llama-3.2-1b-gsm8k", "llama-3.2-3b-gsm8k", "qwen2.5-0.5b-gsm8k",
        "qwen2.5-1.5b-gsm8k", "qwen3-4b-gsm8k",
    }  # fmt: skip
    assert wanted <= set(recipes.list_recipes())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("grpo.num_generation=4", "did you mean 'num_generations'"),
        ("grop.num_generations=4", "did you mean 'grpo'"),
        ("grpo.num_generations=1", "greater than or equal to 2"),
        ("schedule.micro_batch=7", "set it to 4"),
        ("schedule.max_steps=many", "valid integer"),
        ("model.precision=8bit", "'4bit', '16bit' or '32bit'"),
        ("watch.stop=[\"dead-rewards\"]", "did you mean 'dead-reward'"),
        ("rewards.corect.weight=2", "did you mean 'correct'"),
        ("rewards.correct=2", "rewards.correct"),
        ("rewards=[]", "at least 1"),
        ("rewards.correct.weight=0", "give one a weight"),
        ("schedule", "write key=value"),
        ("model.name.x=1", "is a value, not a table"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_the_way_out(mine: str, setting: str, said: str) -> None:
    with pytest.raises(click.UsageError) as error:
        recipes.load_recipe(mine, [setting])
    assert said in error.value.message, error.value.message
    assert "\n" not in error.value.message


def test_a_runs_own_recipe_that_is_damaged_is_named() -> None:
    with pytest.raises(click.UsageError, match=r"runs/x/recipe.toml is damaged .*: restore it"):
        recipes.parse_recipe("x = [", "runs/x/recipe.toml")


def test_set_takes_toml_values_and_bare_words(mine: str) -> None:
    found = recipes.load_recipe(
        mine,
        ["model.name=Qwen/Qwen3-0.6B", "schedule.learning_rate=3e-5", "lora.targets=[\"q_proj\"]",
         "rewards.correct.weight=2", "trainer.dataloader_in_order=false"],
    )  # fmt: skip
    assert found.model.name == "Qwen/Qwen3-0.6B"
    assert found.schedule.learning_rate == 3e-5
    assert found.lora.targets == ("q_proj",)
    assert found.rewards[0].weight == 2
    assert found.trainer == {"dataloader_in_order": False}


def test_model_and_data_have_no_default(tmp_path: Path) -> None:
    for missing in ("[model]\nname", "[data]\nsource"):
        path = tmp_path / "less.toml"
        path.write_text(MINIMAL.replace(missing, "[lora]\n# "), "utf-8")
        with pytest.raises(click.UsageError, match=r"is missing|not valid TOML"):
            recipes.load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("embeded-arithmetic", "did you mean 'toy-arithmetic'"),
        ("nowhere.toml", "There is no recipe file"),
        ("no/such/thing", "There is no recipe file"),
    ],
)
def test_an_unknown_recipe_names_the_nearest(name: str, said: str) -> None:
    with pytest.raises(click.UsageError, match=re.escape(said)):
        recipes.load_recipe(name)


def test_text_of_any_kind_survives_the_round_trip(mine: str) -> None:
    odd = 'a "quoted" \\ back\nslash\t and \x07\x7f bell, ünïcode 漢'
    found = recipes.load_recipe(mine)
    changed = Recipe.model_validate(found.model_dump() | {"about": odd})
    assert recipes.parse_recipe(recipes.to_toml(changed), "x").about == odd


def test_the_alarms_take_exactly_the_limits_of_the_recipe() -> None:
    from train.monitor.alarms import Alarms

    limits = {name: one.default for name, one in inspect.signature(Alarms).parameters.items()}
    assert limits == WatchTable().model_dump(exclude={"stop"})


# ----------------------------------------------------------------------------------------------------------
# Portions and fields


@pytest.mark.parametrize(
    ("gpus", "micro", "accumulation", "generated"),
    [(1, 8, 8, 64), (2, 8, 4, 32), (4, 8, 2, 16), (16, 4, 1, 4)],
)
def test_the_effective_batch_stays_however_many_gpus_share_it(
    mine: str, gpus: int, micro: int, accumulation: int, generated: int
) -> None:
    found = recipes.load_recipe(mine)  # 8 prompts x 8 completions a step, 8 at once
    sizes = found.batch_sizes(gpus=gpus, rows=1000)
    assert (sizes.micro_batch, sizes.accumulation) == (micro, accumulation)
    assert sizes.generated == generated
    assert gpus * micro * accumulation == sizes.completions == 64
    assert sizes.steps_per_epoch == 125


def test_completions_generated_ahead_are_counted(mine: str) -> None:
    found = recipes.load_recipe(mine, ["schedule.steps_per_batch=4"])
    sizes = found.batch_sizes(rows=1000)
    assert sizes.generated == 256
    assert sizes.steps_per_epoch == 124  # 31 whole generations of 4 steps


def test_generating_in_portions_changes_nothing_else(mine: str) -> None:
    whole = recipes.load_recipe(mine).batch_sizes(rows=1000)
    for at_once, generated in ((24, 24), (1000, 64)):
        found = recipes.load_recipe(mine, [f"schedule.generate_at_once={at_once}"])
        assert found.batch_sizes(rows=1000) == replace(whole, generated=generated)
        assert found.batch_sizes(gpus=4, rows=1000).generated == 16


def test_unsloth_says_that_it_generates_all_at_once(mine: str) -> None:
    found = recipes.load_recipe(mine, ["schedule.generate_at_once=8", "model.precision=16bit"])
    assert (
        "leave schedule.generate_at_once out"
        in unsupported_settings(found, "unsloth", cuda=True)[0]
    )
    assert unsupported_settings(found, "trl", cuda=True) == []


def test_gpus_that_cannot_share_a_step_are_refused(mine: str) -> None:
    with pytest.raises(click.UsageError, match="prompts_per_step to a multiple of 3"):
        recipes.load_recipe(mine).batch_sizes(gpus=3, rows=1000)


def test_every_field_that_grpo_adds_is_written_out(mine: str) -> None:
    import dataclasses

    from transformers import TrainingArguments
    from trl import GRPOConfig

    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    base = {field.name for field in dataclasses.fields(TrainingArguments)}
    found = recipes.load_recipe(mine)
    fields = trl_config.grpo_config_fields(
        found,
        found.batch_sizes(rows=1000),
        output=Path("runs/x/c"),
        cuda=False,
        bf16=False,
    )
    assert set(fields) <= known
    left = known - base - set(fields)
    assert left == trl_config.LEFT, (
        "a field that GRPO adds is neither written out nor accounted for"
    )
    # what unsloth is known to change, beyond the fields that GRPO adds
    forced = {
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "optim",
        "weight_decay", "seed", "logging_steps", "torch_empty_cache_steps", "report_to", "warmup_steps",
        "adam_beta1", "adam_beta2", "max_grad_norm", "lr_scheduler_type", "bf16",
    }  # fmt: skip
    assert forced <= set(fields)
    GRPOConfig(**fields)


def test_a_field_of_the_trainer_table_is_checked_by_name() -> None:
    known = {"dataloader_in_order", "max_steps"}
    trl_config.check_trainer_fields(["dataloader_in_order"], known)
    with pytest.raises(click.UsageError, match="did you mean 'dataloader_in_order'"):
        trl_config.check_trainer_fields(["dataloader_inorder"], known)
    with pytest.raises(click.UsageError, match="follows from the other tables"):
        trl_config.check_trainer_fields(["max_steps"], known)


def test_what_a_backend_changed_behind_our_back_is_put_back(mine: str) -> None:
    class Arguments:
        epsilon_high = 0.28
        mask_truncated_completions = True
        learning_rate = 5e-5

    class Trainer:
        args = Arguments()
        epsilon_high = 0.28
        mask_truncated_completions = True

    trainer = Trainer()
    trl_config.restore_fields(
        trainer,
        {"epsilon_high": 0.2, "mask_truncated_completions": False, "learning_rate": 1e-6},
    )
    assert (trainer.epsilon_high, trainer.args.epsilon_high) == (0.2, 0.2)
    assert trainer.mask_truncated_completions is False
    assert trainer.args.learning_rate == 1e-6


@pytest.mark.parametrize(
    ("targets", "chunked", "refused"),
    [
        ('["lm_head"]', "true", True),
        ('["q_proj", "lm_head"]', "true", True),
        ('["q_proj", "lm_head"]', "false", False),
        ('["q_proj"]', "true", False),
        ("all-linear", "true", False),
    ],
)
def test_chunked_log_probabilities_refuse_an_adapter_on_the_head(
    targets: str, chunked: str, refused: bool
) -> None:
    settings = [f"lora.targets={targets}", f"backend.chunked_logprobs={chunked}"]
    said = unsupported_settings(recipes.load_recipe("toy-arithmetic", settings), "trl", cuda=False)
    assert any("adapter on lm_head" in one for one in said) == refused
