"""GRPO, top to bottom: data, model and adapter, rewards, trainer, and what the run leaves behind.

Left out of the paper, as everybody does by now: the reference model with its KL term (beta = 0) and the
value network; what remains is REINFORCE against the mean of a group. TRL does the method; this file says
in which order things happen and where they are written.

    rig train toy-arithmetic          two minutes on a CPU
    rig train llama-3.1-8b-gsm8k-12gb      the real thing
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.atomic import atomic_folder
from rig.errors import RigError, WrongUse
from rig.model import base_weights
from rig.runs import Run
from train import ddp
from train.monitor import log, power
from train.monitor.trackers import Trackers
from train.recipe import Recipe
from train.trainer import checkpoints

if TYPE_CHECKING:
    from train.batching import BatchSizes
    from train.data.dataset import DataSplits
    from train.model.backends import Backend
    from train.monitor.alarms import Alarms
    from train.trainer.callback import MonitorCallback
    from train.trainer.held_out import HeldOutEval


def train(run: Run, recipe: Recipe, *, gpus: int, quiet: bool) -> None:
    """Train in this process, which is one of `gpus`; the run's lock is held by the caller.

    Raises:
        WrongUse: the recipe or its data can't be trained on.
        RigError: the run was stopped by an alarm, or the machine does not suffice.
        KeyboardInterrupt: a person stopped it; the run is saved.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    quiet = quiet or not first

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    say(f"Loading {recipe.model.name} ...")

    # ------------------------------------------------------------------------------------------------------
    # Who drives: this imports unsloth, if it is used, before everything that it rewrites

    from train.model import backends
    from train.plan.unsupported import unsupported_settings

    name, cuda = backends.choose_backend(recipe.backend.name)
    if wrong := unsupported_settings(recipe, name, cuda=cuda):
        raise WrongUse(wrong[0])
    backend = backends.import_backend(name, run.path, threads=recipe.backend.threads)

    from train.data import dataset, same_data
    from train.eval.models import SamplingParams
    from train.eval.problems import take_problems
    from train.monitor.progress import ProgressBar
    from train.plan import plan
    from train.report import html
    from train.rewards.binding import bind_reward
    from train.trainer import preflight, trl_config, trl_trainer
    from train.trainer.callback import MonitorCallback
    from train.trainer.held_out import HeldOutEval

    # ------------------------------------------------------------------------------------------------------
    # Data and rewards: what is wrong with a recipe shows before anything is loaded

    reply_format = recipe.reply_format.to_reply_format()
    table = recipe.data.model_dump(exclude={"max_prompt_length"})
    splits = dataset.load_splits(**table, system_prompt=reply_format.system_prompt)
    same_data.check_data(run.path, splits, recipe.data.source)
    functions = [
        bind_reward(reward.name, reward.options, reply_format) for reward in recipe.rewards
    ]
    if backend.cuda and recipe.backend.preflight:
        plan.refuse_oversized(recipe, backend.name, backend.memory, gpus=gpus)

    with Trackers(run, recipe.schedule.report_to, first=first, say=say) as trackers:
        trackers.start_trackers()

        # --------------------------------------------------------------------------------------------------
        # Model and adapter; then the prompts that this model can learn from

        model, tokenizer = backends.load_for_training(
            recipe.model.name,
            backend,
            backends.LoraSpec(**recipe.lora.model_dump(), seed=recipe.schedule.seed),
            precision=recipe.model.precision,
            attention=recipe.model.attention,
            checkpointing=recipe.schedule.gradient_checkpointing,
            longest=recipe.data.max_prompt_length + recipe.grpo.max_completion_length,
            revision=recipe.model.revision,
            chat_template=recipe.model.chat_template,
        )
        weights = backends.find_weights(recipe.model.name, recipe.model.revision)
        if weights is not None:
            base_weights.check_base_weights(run, weights)
        if first:
            same_data.note_data(run.path, splits)
        splits = _drop_long_prompts(splits, tokenizer, recipe.data.max_prompt_length)
        for note in splits.notes:
            say(f"  {note}")
        checkpoint = checkpoints.latest_checkpoint(run.checkpoint_folder)
        done = checkpoint[0] if checkpoint else 0
        problems = take_problems(
            splits,
            recipe.evaluation.problems,
            source=recipe.data.source,
            seed=recipe.data.seed,
            reply_format=reply_format,
            sampling=SamplingParams(max_tokens=recipe.grpo.max_completion_length),
        )
        held_out = HeldOutEval(
            run,
            problems,
            model,
            tokenizer,
            base=recipe.model.name,
            batch=recipe.evaluation.batch,
            patience=recipe.evaluation.patience,
            done=done,
        )
        if recipe.probe.attempts:
            splits = _probe_prompts(run, recipe, splits, model, tokenizer, first=first, say=say)

        # --------------------------------------------------------------------------------------------------
        # Trainer

        sizes = recipe.batch_sizes(gpus=gpus, rows=len(splits.train))
        if sizes.steps_per_epoch == 0:
            raise WrongUse(
                f"{len(splits.train)} training prompts are too few for one generation, which takes "
                f"{recipe.schedule.prompts_per_step * recipe.schedule.steps_per_batch}: lower "
                "schedule.prompts_per_step."
            )
        fields = trl_config.grpo_config_fields(
            recipe,
            sizes,
            output=run.checkpoint_folder.resolve(),
            cuda=backend.cuda,
            bf16=backend.bf16,
        )
        trl_config.check_trainer_fields(recipe.trainer, trl_trainer.list_config_fields())
        trainer = trl_trainer.build_trainer(model, tokenizer, splits.train, functions, fields)
        trl_trainer.configure_trainer(
            trainer,
            reply_format=reply_format,
            keep=recipe.schedule.keep_checkpoints,
            empty_cache=recipe.backend.empty_cache,
            compile=recipe.backend.compile,
            chunked_logprobs=recipe.backend.chunked_logprobs,
            decode=recipe.backend.decode == "rig",
            packed=recipe.backend.packed,
            at_once=sizes.generated if backend.name == "trl" else None,
        )
        trackers.guard_callbacks(trainer, done)
        trainer.epochs_done = done // sizes.steps_per_epoch
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        say(f"{backend.name} on {backend.device_name}; {trainable:,} parameters learn")
        if (there := ddp.count_gpus()) > gpus:
            say(f"  {gpus} of {there} GPUs; --gpus {there} shares each step between all of them")
        say(trl_config.summarise_fields(fields))

        # --------------------------------------------------------------------------------------------------
        # Before: the record, what the model can do already, and who watches

        if first:
            checkpoints.remove_partial_checkpoints(run.checkpoint_folder)
            log.truncate_log(run.path / log.LOG, done)
            log.truncate_log(run.path / log.SAMPLES, done)
            _note_start(run, recipe, backend, fields, splits, sizes, trainable, weights)
            if problems.rows and "before" not in run.record.get("eval", {}) and not done:
                _evaluate(held_out, "before", say)
        meter = power.PowerMeter(gpus)
        monitor = MonitorCallback(
            run.path,
            alarms=_replay_alarms(run, recipe, done),
            stop_on=recipe.watch.stop,
            progress=ProgressBar(recipe.schedule.max_steps, done, quiet=quiet),
            look=held_out.evaluate_step if problems.rows else None,
            look_every=recipe.evaluation.every,
            watts=meter.latest_watts,
            first=first,
        )
        monitor.attach_to(trainer)

        def begin() -> None:
            """Called once the trainer has put the model where it trains, before the first step."""
            if recipe.backend.preflight and not done:
                preflight.run_preflight(trainer, splits.train, say)
            if done:
                say(f"Going on after step {done}.")
            if first:
                run.update_record("training")

        monitor.before_training = begin

        # --------------------------------------------------------------------------------------------------
        # Train

        try:
            meter.start()
            trainer.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)
        finally:
            meter.stop()
            monitor.close()
        if first:
            _note_end(run, monitor, trainer)
        _leave_if_stopped(run, monitor, first=first, say=say)

        # --------------------------------------------------------------------------------------------------
        # After: the adapter, what it can do now, the page that tells it all

        if first:
            _save_adapter(run, recipe, trainer, tokenizer, held_out)
            if problems.rows:
                _evaluate(held_out, "after", say)
                run.update_record(change=held_out.compare_before_after())
            run.update_record("trained")
            html.write_report(run)


# ----------------------------------------------------------------------------------------------------------


def _drop_long_prompts(splits: DataSplits, tokenizer: Any, longest: int) -> DataSplits:
    """Leave out the training prompts that are too long for this tokenizer."""
    from train.data import dataset

    def measure(prompts: list[list[dict[str, str]]]) -> list[int]:
        texts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return dataset.drop_long_prompts(splits, measure, longest)


def _probe_prompts(
    run: Run,
    recipe: Recipe,
    splits: DataSplits,
    model: Any,
    tokenizer: Any,
    *,
    first: bool,
    say: Any,
) -> DataSplits:
    """Leave out what the model always or never solves; of several processes the first one asks."""
    from train.eval import difficulty
    from train.eval.models import LocalModel, SamplingParams
    from train.model.preserve_state import preserve_state

    say(f"Probing prompts, {recipe.probe.attempts} times each ...")
    grpo = recipe.grpo
    sampling = SamplingParams(
        grpo.max_completion_length, grpo.temperature, grpo.top_p, recipe.schedule.seed
    )
    with preserve_state(model):
        found = difficulty.probe_prompts(
            LocalModel(model, tokenizer, recipe.evaluation.batch) if first else None,
            splits.train,
            recipe.reply_format.to_reply_format(),
            run.path,
            attempts=recipe.probe.attempts,
            prompts=recipe.probe.prompts,
            keep_unsolved=recipe.probe.keep_unsolved,
            sampling=sampling,
        )
    say(f"  {found.to_sentence()}")
    return replace(splits, train=found.kept)


def _note_start(
    run: Run,
    recipe: Recipe,
    backend: Backend,
    fields: dict[str, Any],
    splits: DataSplits,
    sizes: BatchSizes,
    trainable: int,
    weights: Path | None,
) -> None:
    run.update_record(
        **backend.to_record(),
        seed=recipe.schedule.seed,
        trainable_parameters=trainable,
        training_prompts=len(splits.train),
        held_out_problems=len(splits.held_out),
        held_out_fingerprint=splits.held_out_fingerprint,
        steps_per_epoch=sizes.steps_per_epoch,
        settings={key: value for key, value in fields.items() if key != "output_dir"},
        base_weights=base_weights.fingerprint_weights(weights) if weights is not None else None,
    )


def _replay_alarms(run: Run, recipe: Recipe, done: int) -> Alarms:
    """The alarms of this run, which know what they heard before it was cut off."""
    from train.monitor.alarms import Alarms

    alarms = Alarms(**recipe.watch.model_dump(exclude={"stop"}))
    for row in log.read_step_rows(run.path / log.LOG):
        if row["step"] <= done:  # this process may read before the first one has cut the file
            alarms.check_row(row)
    return alarms


def _evaluate(held_out: HeldOutEval, label: str, say: Any) -> None:
    say(f"Judging {len(held_out.problems.rows)} held-out problems, {label} ...")
    figures = held_out.evaluate_label(label)
    parts = [f"{name} {figures[name]['share']:.1%}" for name in ("strict", "lenient", "format")]
    say(f"  {label}: {', '.join(parts)}")


def _note_end(run: Run, monitor: MonitorCallback, trainer: Any) -> None:
    rows = log.read_step_rows(run.path / log.LOG)
    spent = sum(float(row.get("step_time") or 0) for row in rows)
    joules = sum(float(row.get("step_time") or 0) * float(row.get("watts") or 0) for row in rows)
    alarms = [row for row in log.read_rows(run.path / log.LOG) if "alarm" in row]
    run.update_record(
        steps=int(trainer.state.global_step),
        seconds=round(spent, 1),
        alarms=alarms,
        early=monitor.early,
        **({"energy": power.format_cost(joules / power.KWH)} if joules else {}),
    )


def _leave_if_stopped(run: Run, monitor: MonitorCallback, *, first: bool, say: Any) -> None:
    """End here where the run did not come to its end, saying why and how to go on."""
    from train.report import html

    if monitor.stopped is not None:
        if first:
            run.update_record(stopped=monitor.stopped.to_log_row())
            html.write_report(run)
        raise RigError(
            f"Stopped at step {monitor.stopped.step}: {monitor.stopped.sentence} "
            f"Log, samples and report are in {run.path}."
        )
    if monitor.interrupted and monitor.early is None:
        if first:
            html.write_report(run)
        say(f"Saved after step {monitor.step}. Go on with: rig train --resume {run.path}")
        raise KeyboardInterrupt


def _save_adapter(
    run: Run, recipe: Recipe, trainer: Any, tokenizer: Any, held_out: HeldOutEval
) -> None:
    """Weights, tokenizer and contract appear together or not at all."""
    from train.trainer.trl_trainer import load_adapter

    model = trainer.accelerator.unwrap_model(trainer.model)
    if (best := held_out.best_adapter()) is not None:
        load_adapter(model, best)
    name = run.adapter_folder.name
    with atomic_folder(run.path, name, when_full=checkpoints.WHEN_FULL) as workshop:
        folder = workshop / name
        model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        tokenizer.save_pretrained(str(folder))
        recipe.reply_format.to_reply_format().save_to(folder)
