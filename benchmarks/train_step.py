"""Step time of `rig train` against the same TRL trainer driven by hand: `python benchmarks/train_step.py`.

Both train the toy model on the CPU with the same fields, data, rewards and seed, so they must log the
same rewards (that is checked). By hand means GRPOTrainer as TRL's documentation shows it, with nothing of rig
but the reward functions. Two processes take turns, one optimiser step each, so that a busy machine slows both
alike; the median of the paired ratios is printed: with TRL's own `generate` and padded rows under both (what
the monitoring costs), and with rig's decoder and packed rows (what a person gets).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click

WARM_UP = 3
"""Steps of each that do not count."""


class Turn:
    """One of two processes: waits for its turn, measures a step, passes the turn on.

    A step is all that lies between two beginnings of a step: generating, learning, logging, writing.
    """

    def __init__(self, mine: Any, other: Any) -> None:
        self._mine, self._other = mine, other
        self.seconds: list[float] = []
        self._began: float | None = None

    def pass_on(self) -> None:
        """End a step, if one is running."""
        if self._began is not None:
            self.seconds.append(time.perf_counter() - self._began)
            self._began = None
            self._other.release()

    def take(self) -> None:
        """Wait for the other one's step, then begin."""
        self._mine.acquire()
        self._began = time.perf_counter()


def listener(turn: Turn) -> Any:
    """The turn as a callback of the trainer."""
    from transformers import TrainerCallback

    class Listener(TrainerCallback):  # type: ignore[misc]
        """Calls at the beginning of each step and at the end of the last."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn.pass_on()
            turn.take()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            turn.pass_on()

    return Listener()


def recipe_of(steps: int, decode: str) -> Any:
    """The shipped recipe, cut to what is compared."""
    from train import recipe

    return recipe.load_recipe(
        "toy-arithmetic",
        [f"schedule.max_steps={steps}", "schedule.save_every=1000000", "evaluation.problems=0",
         "evaluation.every=0", "backend.preflight=false", f"backend.decode={decode}",
         f"backend.packed={str(decode == 'rig').lower()}"],
    )  # fmt: skip


def by_hand(steps: int, folder: Path, turn: Turn) -> list[float]:
    """GRPOTrainer as its documentation shows it; returns the rewards that it logged."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer

    from train.data import dataset
    from train.model.backends import TOY
    from train.rewards.binding import bind_reward
    from train.trainer import trl_config

    recipe = recipe_of(steps, "transformers")
    reply_format = recipe.reply_format.to_reply_format()
    table = recipe.data.model_dump(exclude={"max_prompt_length"})
    rows = dataset.load_splits(**table, system_prompt=reply_format.system_prompt).train
    functions = [bind_reward(one.name, one.options, reply_format) for one in recipe.rewards]
    sizes = recipe.batch_sizes(rows=len(rows))
    fields = trl_config.grpo_config_fields(
        recipe, sizes, output=folder / "x", cuda=False, bf16=False
    )
    model = AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.float32)
    set_seed(recipe.schedule.seed)
    trainer = GRPOTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(TOY, padding_side="left"),
        reward_funcs=functions,
        args=GRPOConfig(**fields),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=recipe.lora.r,
            lora_alpha=recipe.lora.alpha,
            target_modules=list(recipe.lora.targets),
            task_type="CAUSAL_LM",
        ),
        callbacks=[listener(turn)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [row["reward"] for row in trainer.state.log_history if "loss" in row]


def by_rig(steps: int, folder: Path, turn: Turn, decode: str) -> list[float]:
    """The whole of `rig train`; returns the rewards that it logged."""
    from rig.runs import Run
    from train import grpo
    from train import recipe as recipes
    from train.monitor import log
    from train.trainer import trl_trainer

    recipe = recipe_of(steps, decode)
    run = Run.create(folder / "run", recipe=recipes.to_toml(recipe), base="toy")
    tune = trl_trainer.configure_trainer

    def and_listen(made: Any, **given: Any) -> None:
        tune(made, **given)
        made.add_callback(listener(turn))

    trl_trainer.configure_trainer = and_listen  # type: ignore[assignment]
    grpo.train(run, recipe, gpus=1, quiet=True)
    return [row["reward"] for row in log.read_step_rows(run.path / log.LOG)]


def racer(who: str, steps: int, folder: str, mine: Any, other: Any, results: Any) -> None:
    """One process of a race."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from train.model import backends

    backends.silence_libraries()
    torch.set_num_threads(2)
    turn = Turn(mine, other)
    place = Path(folder)
    try:
        logged = by_hand(steps, place, turn) if who == "hand" else by_rig(steps, place, turn, who)
    except BaseException as error:
        results.put((who, error, []))
        raise
    results.put((who, turn.seconds[WARM_UP:], logged))


def race(steps: int, decode: str) -> dict[str, Any]:
    """Run both and return medians, ratio, and how far their logs agree."""
    context = multiprocessing.get_context("spawn")
    first, second = context.Semaphore(1), context.Semaphore(0)
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        runners = [
            context.Process(target=racer, args=(who, steps, f"{folder}/{who}", *turns, results))
            for who, turns in (("hand", (first, second)), (decode, (second, first)))
        ]
        for runner in runners:
            runner.start()
        found = {}
        for _ in runners:
            who, seconds, rewards = results.get()
            if isinstance(
                seconds, BaseException
            ):  # the other one waits for a turn that never comes
                for runner in runners:
                    runner.kill()
                raise RuntimeError(f"{who} failed") from seconds
            found[who] = seconds, rewards
        for runner in runners:
            runner.join()
    hand, rig = found["hand"], found[decode]
    ratios = sorted(ours / theirs for theirs, ours in zip(hand[0], rig[0], strict=True))
    alike = next(
        (
            at
            for at, (one, two) in enumerate(zip(hand[1], rig[1], strict=True))
            if abs(one - two) > 1e-6
        ),
        steps,
    )
    return {
        "decoder": decode,
        "steps": len(ratios),
        "by_hand_s": round(median(hand[0]), 3),
        "rig_s": round(median(rig[0]), 3),
        "ratio": round(median(ratios), 3),
        "middle_half": [round(ratios[len(ratios) // 4], 3), round(ratios[-len(ratios) // 4], 3)],
        "steps_with_the_same_reward": alike,
    }


@click.command()
@click.option(
    "--steps", default=25, show_default=True, help="Optimiser steps of each, 3 do not count."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(steps: int, as_json: bool) -> None:
    """Race `rig train` against TRL by hand on the CPU."""
    versions = {name: version(name) for name in ("torch", "trl", "transformers")}
    found = [race(steps, decode) for decode in ("transformers", "rig")]
    if as_json:
        click.echo(json.dumps({"machine": platform.platform(), **versions, "races": found}))
        return
    click.echo(f"{platform.platform()}, {versions}")
    for one in found:
        click.echo(
            f"decoder {one['decoder']}: by hand {one['by_hand_s']} s, rig {one['rig_s']} s a step; "
            f"ratio {one['ratio']} (middle half {one['middle_half']}, {one['steps']} pairs); the first "
            f"{one['steps_with_the_same_reward']} of {steps} rewards are the same"
        )


if __name__ == "__main__":
    main()
