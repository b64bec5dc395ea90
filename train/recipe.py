"""A recipe is one TOML file that says everything about a run; only this file knows its shape.

Upstream words stand for upstream things: every key of `[grpo]`, and most of `[schedule]`, is the TRL field
of that name. Model and data have no default, numbers have. `train/recipes/` holds the ones that ship.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rig.atomic import write_text
from rig.config import read_toml
from rig.errors import WrongUse, suggest_name
from rig.model.reply_format import TAUGHT, ReplyFormat
from rig.validation import FrozenModel, validate_as
from train.batching import BatchSizes, largest_divisor, split_step
from train.monitor.alarms import KINDS
from train.recipe_toml import apply_setting, format_toml

SHIPPED = Path(__file__).parent / "recipes"
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven linear modules of a Llama-like layer."""


class ModelTable(FrozenModel):
    """`[model]`: what is taught."""

    name: str
    """`toy`, a local folder, or a Hugging Face id."""
    revision: str | None = None
    """Commit or branch of a hub id (none = main)."""
    precision: Literal["4bit", "16bit", "32bit"] = "16bit"
    """How the frozen weights stand in memory; 4bit (NF4, double quantised) needs a CUDA GPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    chat_template: Path | None = None
    """A Jinja file for a base model that brings no chat template."""


class ReplyFormatTable(FrozenModel):
    """`[reply_format]`: the form of reply that is taught; travels with the weights."""

    system_prompt: str = TAUGHT.system_prompt
    reasoning_open: str = TAUGHT.reasoning_open
    reasoning_close: str = TAUGHT.reasoning_close
    answer_open: str = TAUGHT.answer_open
    answer_close: str = TAUGHT.answer_close

    def to_reply_format(self) -> ReplyFormat:
        """The contract as the other rooms know it."""
        return ReplyFormat(**self.model_dump())


class DataTable(FrozenModel):
    """`[data]`: the problems, and which of them are never trained on."""

    source: str
    """`gsm8k`, `generated:arithmetic`, a path (.jsonl, .json, .csv, .tsv, .parquet), or a hub id."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    revision: str | None = None
    """Commit or branch of a hub data set (none = main)."""
    split: str = "train"
    """Split of a hub data set to train on."""
    held_out_split: str | None = None
    """Split of a hub data set, or a second file, to judge on; none = cut `held_out` off the source."""
    held_out: int | float = Field(default=200, gt=0)
    """Rows kept for judging: a count, or a fraction below 1."""
    question: str = "question"
    """Column with the question, or a dotted path to it; it becomes the user's message."""
    answer: str = "answer"
    """Column with the gold, or a dotted path to it (`reward_model.ground_truth`); of a list any counts."""
    prompt: str | None = None
    """Column with a ready list of messages, instead of `question`."""
    limit: int | None = Field(default=None, gt=0)
    """Train on that many rows at most (none = all)."""
    max_prompt_length: int = Field(default=512, gt=0)
    """Tokens; longer prompts are left out, and how many is said."""
    seed: int = 3407


class RewardTable(FrozenModel):
    """`[[rewards]]`: one reward and what it counts."""

    name: str
    """A registered name, or `path.py:function`."""
    weight: float = 1.0
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a reward that is made to measure."""


class LoraTable(FrozenModel):
    """`[lora]`: the adapter that is trained; rank times (in + out) parameters per matrix."""

    r: int = Field(default=32, gt=0)
    alpha: int = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = SEVEN
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""


class GrpoTable(FrozenModel):
    """`[grpo]`: the method, in TRL's words (facts of each in TRL's GRPOConfig)."""

    num_generations: int = Field(default=8, ge=2)
    """Completions per prompt: the group that a completion is compared with."""
    max_completion_length: int = Field(default=512, gt=0)
    """Tokens; what is longer is cut off."""
    temperature: float = Field(default=1.0, gt=0, lt=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 = disabled."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = (
        "dapo"
    )
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term (0 = no reference model)."""
    num_iterations: int = Field(default=1, ge=1)
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    delta: float | None = None
    importance_sampling_level: Literal["token", "sequence"] = "token"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = (
        "sum_then_normalize"
    )
    mask_truncated_completions: bool = False
    top_entropy_quantile: float = Field(default=1.0, gt=0, le=1)
    entropy_coef: float = 0.0
    disable_dropout: bool = False
    cache_implementation: str | None = None
    """Key-value cache of generation: `dynamic` (none), `static`, `offloaded`, ..."""


class ScheduleTable(FrozenModel):
    """`[schedule]`: how long, how fast, in which portions. Counts hold for all GPUs together."""

    max_steps: int = Field(default=250, gt=0)
    """Optimiser steps."""
    prompts_per_step: int = Field(default=8, gt=0)
    """Different prompts behind one optimiser step."""
    micro_batch: int = Field(default=8, gt=0)
    """Completions that go through the model at once while it learns, on each GPU."""
    steps_per_batch: int = Field(default=1, gt=0)
    """Optimiser steps whose completions are generated together (1 = always on policy)."""
    generate_at_once: int | None = Field(default=None, gt=0)
    """Completions that are generated at once at most, on each GPU (none = all of them): less memory, more
    time. A multiple of `num_generations` reads each prompt once. Plain TRL only."""
    learning_rate: float = Field(default=5e-6, gt=0)
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = (
        "constant_with_warmup"
    )
    warmup_steps: float = Field(default=0.05, ge=0)
    """Steps, or a share of `max_steps` when below 1."""
    optim: str = "adamw_torch"
    """TRL's name, such as adamw_torch, adamw_8bit, paged_adamw_8bit."""
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    max_grad_norm: float = Field(default=0.2, gt=0)
    gradient_checkpointing: bool = False
    """Keep fewer activations and compute them twice: slower, and far less memory."""
    seed: int = 3407
    save_every: int = Field(default=25, gt=0)
    """Steps between two checkpoints; what a power cut can cost."""
    keep_checkpoints: int = Field(default=2, gt=0)
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers besides log.jsonl; what tensorboard and wandb write lies in the run folder."""


class EvaluationTable(FrozenModel):
    """`[evaluation]`: what the held-out problems are asked for."""

    problems: int = Field(default=100, ge=0)
    """Held-out problems judged before and after (0 = none)."""
    every: int = Field(default=0, ge=0)
    """Steps between two looks at the held-out problems while training (0 = none)."""
    patience: int = Field(default=0, ge=0)
    """Stop when that many looks in a row brought no better accuracy (0 = never)."""
    batch: int = Field(default=16, gt=0)
    """Held-out problems generated together."""


class ProbeTable(FrozenModel):
    """`[probe]`: before the run, drop prompts that the model always or never solves: they teach nothing."""

    attempts: int = Field(default=0, ge=0)
    """Completions per prompt (0 = no probe)."""
    prompts: int | None = Field(default=None, gt=0)
    """Probe that many prompts and train on what is kept of them (none = all)."""
    keep_unsolved: float = Field(default=0.0, ge=0, le=1)
    """Share of the never solved prompts to keep: a model that learns may solve them later."""


class WatchTable(FrozenModel):
    """`[watch]`: what counts as trouble, and which trouble ends the run."""

    stop: tuple[str, ...] = ("nan", "never-learns")
    """Alarms that stop the run; the others warn."""
    dead_reward: int = Field(default=10, ge=0)
    """Steps without any movement after which a reward is called dead (0 = never)."""
    no_signal: int = Field(default=5, ge=0)
    """Steps in a row without learning signal (0 = never)."""
    no_signal_share: float = Field(default=0.3, gt=0, le=1)
    """Share of the last steps (at least 30) without learning signal."""
    collapse: float = Field(default=0.25, ge=0, lt=1)
    """Mean length below this share of the start's is a collapse (0 = never)."""
    explosion: float = Field(default=3.0, ge=0)
    """Mean length above this many times the start's is an explosion (0 = never)."""
    clipped: float = Field(default=0.5, ge=0, le=1)
    """Share of completions cut off by max_completion_length, over ten steps (0 = never)."""
    entropy: float = Field(default=0.02, ge=0)
    """Entropy in nats per token below this is a collapse (0 = never)."""
    never_learns: int = Field(default=200, ge=0)
    """Steps after which a run whose reward has not risen is called hopeless (0 = never)."""

    @field_validator("stop")
    @classmethod
    def _known(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        for kind in stop:
            if kind not in KINDS:
                raise ValueError(f"there is no alarm {kind!r}; {suggest_name(kind, KINDS)}")
        return stop


class BackendTable(FrozenModel):
    """`[backend]`: who drives the GPU."""

    name: Literal["auto", "trl", "unsloth"] = "auto"
    """`auto` takes unsloth where it is installed and a CUDA GPU is present."""
    preflight: bool = True
    """Run the worst case and look at real completions first."""
    decode: Literal["rig", "transformers"] = "rig"
    """Who generates under plain TRL: `rig` captures the decoding step once and replays it."""
    compile: bool = False
    """With decode = "transformers": compile the decoding step (CUDA; wants a static cache)."""
    empty_cache: bool = False
    """Give memory back to the GPU between generating and learning."""
    chunked_logprobs: bool = False
    """Compute log-probabilities 8,192 tokens at a time, without a table of all logits (plain TRL)."""
    packed: bool = True
    """Learn without padding, and from the prompt that a group shares once (plain TRL, full attention)."""
    threads: int = Field(default=0, ge=0)
    """CPU threads (0 = all cores)."""


class Recipe(FrozenModel):
    """One run, whole."""

    about: str
    """One line for the list of recipes."""
    model: ModelTable
    data: DataTable
    rewards: tuple[RewardTable, ...] = Field(min_length=1)
    reply_format: ReplyFormatTable = ReplyFormatTable()
    lora: LoraTable = LoraTable()
    grpo: GrpoTable = GrpoTable()
    schedule: ScheduleTable = ScheduleTable()
    evaluation: EvaluationTable = EvaluationTable()
    probe: ProbeTable = ProbeTable()
    watch: WatchTable = WatchTable()
    backend: BackendTable = BackendTable()
    trainer: dict[str, Any] = Field(default_factory=dict)
    """`[trainer]`: further fields of TRL's GRPOConfig (or unsloth's), checked by name before the run."""

    @model_validator(mode="after")
    def _whole_portions(self) -> Recipe:
        step = self.schedule.prompts_per_step * self.grpo.num_generations
        if step % self.schedule.micro_batch:
            fitting = largest_divisor(step, self.schedule.micro_batch)
            raise ValueError(
                f"one step has {step} completions ({self.schedule.prompts_per_step} prompts x "
                f"{self.grpo.num_generations}), which schedule.micro_batch = "
                f"{self.schedule.micro_batch} does not divide: set it to {fitting}"
            )
        names = [reward.name for reward in self.rewards]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the reward {min(doubled)!r} is listed twice: keep one")
        if all(reward.weight == 0 for reward in self.rewards):
            raise ValueError("all rewards weigh 0, so nothing can be learnt: give one a weight")
        return self

    def batch_sizes(self, *, gpus: int = 1, rows: int = 0) -> BatchSizes:
        """One step shared by `gpus`, in numbers; `rows` is the number of training prompts."""
        return split_step(
            prompts=self.schedule.prompts_per_step,
            group=self.grpo.num_generations,
            micro_batch=self.schedule.micro_batch,
            steps_per_batch=self.schedule.steps_per_batch,
            iterations=self.grpo.num_iterations,
            at_once=self.schedule.generate_at_once,
            gpus=gpus,
            rows=rows,
        )


def list_recipes() -> list[str]:
    """The recipes that ship, by name."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe that ships, or the path that was given."""
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    shipped = SHIPPED / f"{name}.toml"
    if shipped.is_file():
        return shipped
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise WrongUse(
            f"There is no recipe file {name}; shipped recipes: {', '.join(list_recipes())}."
        )
    raise WrongUse(f"There is no recipe called {name!r}; {suggest_name(name, list_recipes())}")


def load_recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe and lay `--set key=value` settings over it; whatever is wrong is one sentence."""
    path = find_recipe(name)
    values = read_toml(path)
    return _resolve(values, settings, str(name))


def parse_recipe(text: str, where: str, settings: Iterable[str] = ()) -> Recipe:
    """The same from text that `to_toml` wrote, also before there was no vLLM in training."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongUse(f"{where} is damaged ({error}): restore it, or train again.") from error
    grpo = values.get("grpo", {})
    for gone in [key for key in grpo if key.removeprefix("use_").startswith("vllm")]:
        del grpo[gone]
    return _resolve(values, settings, where)


def load_run_recipe(folder: Path, settings: Iterable[str] = ()) -> Recipe:
    """The recipe that a run folder holds."""
    file = folder / "recipe.toml"
    return parse_recipe(file.read_text("utf-8"), str(file), settings)


def _resolve(values: dict[str, Any], settings: Iterable[str], where: str) -> Recipe:
    for setting in settings:
        apply_setting(values, setting)
    if "speech" in values:
        raise WrongUse(f"{where}: the table [speech] is called [reply_format] now: rename it.")
    return validate_as(Recipe, values, where)


def save_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the recipe as resolved into a run folder."""
    write_text(folder / "recipe.toml", to_toml(recipe))


def to_toml(recipe: Recipe) -> str:
    """The recipe with every setting written out; keys without a value are left out."""
    return format_toml(recipe.model_dump(mode="json"))
