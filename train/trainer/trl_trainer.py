"""TRL's GRPO trainer, made exact to resume: whole checkpoints, the data order, waiting completions.

Built in a function, because unsloth replaces `trl.GRPOTrainer` when it is imported. Nothing of the method is
changed here; what is added is what is counted beside the rewards, where and when things are written, and what
comes back after a kill. TRL's and transformers' own trainer are touched in this file alone: the others call
what it names (`generate_once`, `learn_once`, `forget`, ...), so a new TRL mends one file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rig.atomic import PART, atomic_folder
from rig.errors import RigError, WrongUse
from rig.model.reply_format import ReplyFormat
from train.data import answers
from train.rewards import builtin
from train.trainer import checkpoints, trl_config

LOST = ("probability tensor contains", "device-side assert")
"""What torch says when a token is to be drawn from no numbers, on the CPU and on a GPU."""
WAITING = "generation"
"""Completions that were generated and not yet learnt from; one file per process."""


def trainer_class() -> type[Any]:
    """The trainer of the backend that was imported, with the additions of this file."""
    import torch
    from trl import GRPOTrainer

    from train.model import packing

    class Trainer(GRPOTrainer):  # type: ignore[misc]
        """GRPOTrainer with whole checkpoints and exact resume."""

        epochs_done = 0
        """Passes over the data before this process began; set before `train`."""
        keep = 2
        """Checkpoints to keep."""
        at_once: int | None = None
        """Completions that are generated together at most; None where the backend alone decides."""
        empty_cache = False
        """Give memory back to the GPU between learning and generating."""
        packed = False
        """Learn without padding and from each prompt once (`train.model.packing`)."""
        reply_format: ReplyFormat | None = None
        """Count how many completions are right and in this form; None counts nothing."""
        _buffered_inputs: Any

        # ----------------------------------------------------------------------------------------------
        # What preflight and monitor ask for

        @property
        def text_tokenizer(self) -> Any:
            """The tokenizer, also where the model has a processor that reads images."""
            return self._tokenizer

        def tokenize_prompts(self, prompts: list[Any]) -> list[list[int]]:
            """The ids of `prompts`, as a step reads them."""
            ids: list[list[int]] = self._tokenize_prompts(prompts)[0]
            return ids

        def generate_completions(self, prompts: list[Any], group: int) -> list[list[int]]:
            """Answer `prompts` as a step does, where each stands `group` times, and return the ids."""
            completions, _ = self._generate_single_turn(*self._tokenize_prompts(prompts), group)
            found: list[list[int]] = completions
            return found

        def generate_once(self, rows: list[dict[str, Any]]) -> Any:
            """Answer and mark the `rows` of a whole generation; return its first micro-batch."""
            self._buffered_inputs, self._step = None, 0
            return self._prepare_inputs(rows)

        def learn_once(self, inputs: Any) -> None:
            """Learn from one micro-batch as a step does, up to the gradients."""
            self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
            with self.compute_loss_context_manager():
                loss = self.compute_loss(self.model_wrapped, inputs)
            self.accelerator.backward(loss)

        def forget(self) -> None:
            """Leave no trace of `generate_once` and `learn_once` in counters, buffers and gradients."""
            self._buffered_inputs, self._step = None, 0
            self.model.zero_grad(set_to_none=True)
            for metrics in self._metrics.values():
                metrics.clear()
            for column in ("prompt", "completion", "advantages", "rewards"):
                self._logs[column].clear()
            self.state.num_input_tokens_seen = 0
            self._current_train_step_time = 0.0

        def latest_completions(self) -> Any:
            """The latest generation: `prompt`, `completion`, and in `rewards` a column of each reward."""
            return self._logs

        # ----------------------------------------------------------------------------------------------
        # What TRL calls

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """No model card: the run folder says more, and TRL writes one at every checkpoint."""

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            """Each epoch shuffles anew with one generator, so a resumed run must draw the past epochs."""
            sampler = super()._get_train_sampler(dataset)
            for _ in range(self.epochs_done if self.shuffle_dataset else 0):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
            return sampler

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self._give_back()
            try:
                scored = super()._generate_and_score_completions(inputs)
            except RuntimeError as error:
                if not any(words in str(error) for words in LOST):
                    raise
                raise RigError(
                    f"After step {self.state.global_step} the model's probabilities are no numbers: the "
                    "weights are lost. Resume from the last checkpoint with a lower "
                    "schedule.learning_rate."
                ) from error
            self._give_back()
            return scored

        def _calculate_rewards(
            self, inputs: Any, prompts: Any, completions: Any, *rest: Any
        ) -> Any:
            if self.reply_format is not None:
                golds = [row["answer"] for row in inputs] if "answer" in inputs[0] else None
                for name, share in count_right(completions, golds, self.reply_format).items():
                    self._log_metric(name, share)
            return super()._calculate_rewards(inputs, prompts, completions, *rest)

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            before = self._buffered_inputs
            inputs = super()._prepare_inputs(generation_batch)
            if not self.packed or self._buffered_inputs is before:
                return inputs
            self._buffered_inputs = packing.group_by_prompt(self._buffered_inputs)
            return self._buffered_inputs[self._step % self.args.steps_per_generation]

        def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **rest: Any) -> Any:
            if not self.packed:
                return super()._get_per_token_logps_and_entropies(model, *args, **rest)
            # (micro-batch, prompt + completion), of which logits_to_keep columns are the completion's
            input_ids, _, logits_to_keep = args
            with packing.packed_forward(
                self.accelerator.unwrap_model(model), input_ids.shape[1] - logits_to_keep
            ):
                return super()._get_per_token_logps_and_entropies(model, *args, **rest)

        def _give_back(self) -> None:
            """What learning left in torch's hands does not suit what generating asks for, and vice versa."""
            if self.empty_cache:
                torch.cuda.empty_cache()

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            final = checkpoints.checkpoint_name(self.state.global_step)
            folder = Path(self.args.output_dir)
            if not self.args.should_save:  # another process lands the folder
                self._write_into(folder / f"{PART}{final}", final, model, trial)
                self.accelerator.wait_for_everyone()
                return
            with atomic_folder(folder, final, when_full=checkpoints.WHEN_FULL) as workshop:
                self._write_into(workshop, final, model, trial)
                self.accelerator.wait_for_everyone()
            checkpoints.prune_checkpoints(folder, self.keep)

        def _write_into(self, workshop: Path, final: str, model: Any, trial: Any) -> None:
            self.accelerator.wait_for_everyone()
            folder, self.args.output_dir = self.args.output_dir, str(workshop)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = folder
            if self._step % (self.args.steps_per_generation * self.num_iterations):
                waiting = {"step": self._step, "batches": self._buffered_inputs}
                torch.save(waiting, workshop / final / _waiting_file(self.args.process_index))

        def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is None:
                return
            # The optimiser remembers the rate of the old schedule; the recipe may have been changed.
            schedule = self.lr_scheduler
            for group, base, shape in zip(
                self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = base * shape(schedule.last_epoch)
            path = Path(checkpoint) / _waiting_file(self.args.process_index)
            if path.is_file():
                device = self.accelerator.device
                there = "cpu" if device.type == "cpu" else device  # under a launcher it is cpu:0
                waiting = torch.load(path, map_location=there, weights_only=True)
                self._step, self._buffered_inputs = waiting["step"], waiting["batches"]

    return Trainer


def count_right(
    completions: Sequence[builtin.Completion],
    golds: Sequence[str] | None,
    reply_format: ReplyFormat,
) -> dict[str, float]:
    """The shares that the log shows beside the rewards, whatever the rewards are.

    `accuracy` is strict: the one answer block holds the gold. `format` needs a contract with a thought.

    >>> from rig.model.reply_format import TAUGHT
    >>> said = ["<reasoning>2+2</reasoning><answer>4</answer>", "<answer>4.0</answer>", "4", ""]
    >>> count_right(said, ["4"] * 4, TAUGHT), count_right(said, None, TAUGHT)
    ({'accuracy': 0.5, 'format': 0.25}, {'format': 0.25})
    """
    texts = [builtin.completion_text(said) for said in completions]
    found = {}
    if golds is not None:
        said = [answers.extract_tagged_answer(text, reply_format) for text in texts]
        right = sum(answers.matches_gold(one, gold) for one, gold in zip(said, golds, strict=True))
        found["accuracy"] = right / len(texts)
    if reply_format.reasoning_open:
        found["format"] = sum(map(reply_format.matches_text, texts)) / len(texts)
    return found


def list_config_fields() -> set[str]:
    """The names of all fields that the backend's GRPOConfig knows."""
    from trl import GRPOConfig

    return {field.name for field in dataclasses.fields(GRPOConfig)}


def build_trainer(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    rewards: list[Any],
    fields: dict[str, Any],
) -> Any:
    """The trainer of `model` with the fields of `train.trainer.trl_config` in force; `rows` hold `prompt`."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig

    try:
        config = GRPOConfig(**fields)
    except ValueError as error:
        raise WrongUse(f"TRL refuses the recipe: {str(error).splitlines()[0]}") from error
    # A process that sees several GPUs would spread over all of them (DataParallel) and multiply its batch.
    config._n_gpu = min(config.n_gpu, 1)
    trainer = trainer_class()(
        model=model,
        processing_class=tokenizer,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(rows),
    )
    trl_config.restore_fields(trainer, fields)
    trainer.remove_callback(PrinterCallback)  # stdout belongs to the result
    return trainer


def configure_trainer(
    trainer: Any,
    *,
    reply_format: ReplyFormat,
    keep: int,
    empty_cache: bool,
    compile: bool,
    chunked_logprobs: bool,
    decode: bool,
    packed: bool,
    at_once: int | None,
) -> None:
    """Set what TRL has no field for; call it between construction and `train`.

    `reply_format`, `keep`, `empty_cache`: as `Trainer` has them.
    `packed`: learn with `train.model.packing` where the model allows it.
    `decode`: generate with `train.model.generate` where it can stand in for transformers' `generate`.
    `at_once`: so many completions together at most; None leaves generating as the backend has it.
    """
    import torch

    trainer.reply_format, trainer.keep, trainer.empty_cache = reply_format, keep, empty_cache
    # TRL casts the adapter of a 4-bit model to bfloat16, where a step of 5e-6 is rounded away.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if compile:
        trainer.generation_config.disable_compile = False
    if chunked_logprobs:  # TRL ties its chunked path to liger-kernel, whose kernels it does not use
        from trl.models.utils import _ForwardRedirection

        trainer.use_liger_kernel = True
        trainer._forward_redirection = _ForwardRedirection()
    from train.model import packing

    model = trainer.accelerator.unwrap_model(trainer.model)
    if packed and packing.can_pack(model):
        packing.install_packed_attention(model)
        trainer.packed = True
    trainer.at_once = at_once
    if at_once is not None:
        _generate_in_portions(trainer, decode=decode)


def _generate_in_portions(trainer: Any, *, decode: bool) -> None:
    from train.model.generate import can_generate, generate, generate_in_portions

    model = trainer.accelerator.unwrap_model(trainer.model)
    theirs = model.generate

    def ours(input_ids: Any, attention_mask: Any, generation_config: Any, **rest: Any) -> Any:
        def portion(ids: Any, mask: Any) -> Any:
            if decode and can_generate(model, generation_config):
                return generate(model, ids, mask, generation_config)
            return theirs(
                input_ids=ids, attention_mask=mask, generation_config=generation_config, **rest
            )

        return generate_in_portions(
            portion, input_ids, attention_mask, generation_config, trainer.at_once
        )

    model.generate = ours


def load_adapter(model: Any, folder: Path) -> None:
    """Put the adapter weights of `folder` in the place of the model's own."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def _waiting_file(process: int) -> str:
    return f"{WAITING}-{process}.pt"
