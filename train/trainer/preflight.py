"""The worst case and a first look, before the first step: what would fail late fails in the first minute.

The worst case is a full batch of the longest prompts with completions that run to their limit, generated and
learnt from once, without an optimiser step. The first look asks whether the model speaks at all: template,
start and end tokens, gibberish. Random states and counters are put back, so the run is the same without it.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rig.errors import RigError
from train.batching import largest_divisor
from train.model.preserve_state import preserve_state
from train.rewards import lint

LOOK = 8
"""Prompts of the first look."""
BABBLE = 0.6
"""Entropy above this share of the largest possible is babble: a model that knows a language stays below
a quarter of it."""


def run_preflight(trainer: Any, rows: Sequence[dict[str, Any]], say: Callable[[str], None]) -> None:
    """Do both: the worst case first, then the look; what is wrong is raised as a sentence."""
    if (peak := worst_case(trainer, rows)) is not None:
        say(f"Worst case: {peak:.2f} GiB of {_gpu_name()}.")
    if texts := first_look(trainer, rows):
        try_rewards(trainer, rows, texts)
        shown = " ".join(texts[0].split())
        say(f"First words: {shown[:160]}{'...' if len(shown) > 160 else ''}")


def check_template(tokenizer: Any, ends: Sequence[int]) -> None:
    """Refuse a chat template that starts twice, leaves the reply no place, or ends on an unknown token."""
    asked = [{"role": "user", "content": "Hi."}]

    def ids(messages: list[dict[str, str]], open_reply: bool) -> list[int]:
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=open_reply, tokenize=False
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = ids(asked, True)
    start = tokenizer.bos_token_id
    if start is not None and prompt[:2] == [start, start]:
        raise RigError(
            "The chat template writes the start token twice, which no model was trained on: mend the "
            "template (model.chat_template)."
        )
    if prompt == ids(asked, False):
        raise RigError(
            "The chat template ignores add_generation_prompt, so the model would go on with the question "
            "instead of answering: mend the template (model.chat_template)."
        )
    answered = ids([*asked, {"role": "assistant", "content": "Hello"}], False)
    special = set(tokenizer.all_special_ids)
    after = [token for token in answered[len(prompt) :] if token in special]
    if after and not set(after) & set(ends):
        closing = tokenizer.convert_ids_to_tokens(after[0])
        known = tokenizer.convert_ids_to_tokens(list(ends))
        raise RigError(
            f"The chat template closes a reply with {closing}, but generation ends at {known}: every "
            "completion would run to its limit. Set the tokenizer's eos_token."
        )


def first_look(trainer: Any, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Generate a few completions as the run will, refuse babble, and return them."""
    prompts = [row["prompt"] for row in rows[:LOOK]]
    ends = trainer.eos_token_ids
    check_template(trainer.text_tokenizer, ends)
    with preserve_state(trainer.model):
        prompt = trainer.tokenize_prompts(prompts)[0]
        if not math.isfinite(_entropy(trainer.model, prompt[:1], prompt[1:])):
            raise RigError(
                "The model's logits are not numbers: its weights are damaged, or model.precision does "
                "not suit it (a 16-bit model in float16 can overflow)."
            )
        completions = trainer.generate_completions(prompts, 1)
        entropy = _entropy(trainer.model, prompt, completions[0])
    texts = [trainer.text_tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
    shown = " ".join(texts[0].split())[:120]
    limit = math.log(trainer.model.config.get_text_config().vocab_size)
    if entropy > BABBLE * limit:
        raise RigError(
            f"The model babbles ({entropy:.1f} of at most {limit:.1f} nats a token): {shown!r}. Its weights "
            "or its tokenizer do not belong together. Set backend.preflight=false to train it all the same."
        )
    repeated = [Counter(ids).most_common(1)[0][1] / len(ids) for ids in completions if len(ids) > 8]
    if repeated and min(repeated) > 0.9:
        raise RigError(
            f"Every completion repeats one token: {shown!r}. The weights are damaged, or model.precision "
            "does not suit the model."
        )
    return texts


def try_rewards(trainer: Any, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    """Mark the first completions as the run will: a reward that fails does so before the first step."""
    with preserve_state(trainer.model):
        given = [
            lint.call_reward(reward, rows[: len(texts)], texts) for reward in trainer.reward_funcs
        ]
    if not any(mark is not None for marks in given for mark in marks):
        raise RigError(
            "The rewards skip every completion (all give None), so nothing can be learnt: "
            "`rig rewards --check RECIPE` tries them one by one."
        )


def worst_case(trainer: Any, rows: Sequence[dict[str, Any]]) -> float | None:
    """Generate and learn at the limit once; return the peak in GiB, or raise with the value that fits.

    On a CPU there is nothing to run out of in that way, and None comes back at once.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    longest = sorted(rows, key=lambda row: -len(str(row["prompt"])))
    args = trainer.args
    local = args.per_device_train_batch_size * args.steps_per_generation
    prompts = max(1, local // trainer.num_generations)
    batch = [
        longest[at % len(longest)] for at in range(prompts) for _ in range(trainer.num_generations)
    ]
    batch = batch[:local]
    with preserve_state(trainer.model), _to_the_limit(trainer):
        trainer.model.train()
        try:
            inputs: list[Any] = []
            if not _fits(lambda: inputs.append(trainer.generate_once(batch))):
                raise RigError(_too_much_generated(trainer, batch))
            if not _fits(lambda: trainer.learn_once(inputs[0])):
                raise RigError(_too_much_learnt(trainer, inputs[0]))
        finally:
            trainer.forget()
            torch.cuda.empty_cache()
    return round(torch.cuda.max_memory_reserved() / 2**30, 2)


# ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _to_the_limit(trainer: Any) -> Iterator[None]:
    """Inside the block no completion ends before its limit."""
    config = trainer.generation_config
    free = config.min_new_tokens
    config.min_new_tokens = trainer.max_completion_length
    try:
        yield
    finally:
        config.min_new_tokens = free


def _fits(attempt: Callable[[], None]) -> bool:
    """Whether the GPU has room for `attempt`.

    An error that is still being handled holds on to what its frames held, so what does fit is tried later.
    """
    import torch

    try:
        attempt()
    except torch.OutOfMemoryError:
        return False
    return True


def _entropy(model: Any, prompt: list[int], completion: list[int]) -> float:
    """Mean entropy in nats over the tokens of one completion."""
    import torch

    # (1, prompt + completion); the logits before each token of the completion: (completion, vocabulary)
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    shares = logits.log_softmax(-1)
    return float(-(shares.exp() * shares).sum(-1).mean())


def _too_much_learnt(trainer: Any, inputs: Any) -> str:
    """Halve the portion until it fits, and name the knob."""
    import torch

    size = trainer.args.per_device_train_batch_size
    fits = size // 2
    while fits:
        torch.cuda.empty_cache()
        trainer.model.zero_grad(set_to_none=True)
        part = {
            key: value[:fits]
            if isinstance(value, torch.Tensor) and value.ndim and len(value) == size
            else value
            for key, value in inputs.items()
        }
        try:
            trainer.learn_once(part)
            break
        except torch.OutOfMemoryError:
            fits //= 2
    problem = f"Out of memory while learning from {size} completions at once on {_gpu_name()}."
    if fits:
        micro = largest_divisor(size * trainer.args.gradient_accumulation_steps, fits)
        return f"{problem} {fits} fit: --set schedule.micro_batch={micro} (the result is the same)."
    if not trainer.args.gradient_checkpointing:
        return f"{problem} Not even 1 fits: --set schedule.gradient_checkpointing=true."
    if not trainer.use_liger_kernel:
        return f"{problem} Not even 1 fits: --set backend.chunked_logprobs=true."
    half = trainer.max_completion_length // 2
    return f"{problem} Not even 1 fits: --set grpo.max_completion_length={half}."


def _too_much_generated(trainer: Any, batch: list[Any]) -> str:
    """Halve what is generated at once until it fits, and name the knob."""
    import torch

    at_once = trainer.at_once or len(batch)
    problem = f"Out of memory while generating {at_once} completions at once on {_gpu_name()}."
    fits = at_once // 2
    while fits:
        torch.cuda.empty_cache()
        try:
            tried = [row["prompt"] for row in batch[:fits]]
            trainer.generate_completions(tried, trainer.num_generations)
            break
        except torch.OutOfMemoryError:
            fits //= 2
    half = trainer.max_completion_length // 2
    if not fits:
        return f"{problem} Not even 1 fits: --set grpo.max_completion_length={half}."
    if trainer.at_once is not None:
        whole = fits - fits % trainer.num_generations or fits  # each prompt is read once
        return (
            f"{problem} {fits} fit: --set schedule.generate_at_once={whole} (it learns the same)."
        )
    group = trainer.num_generations if fits >= trainer.num_generations else fits
    if group >= 2:
        prompts = fits // group
        knobs = {"grpo.num_generations": group} if group < trainer.num_generations else {}
        knobs["schedule.prompts_per_step"] = prompts * trainer.accelerator.num_processes
        knobs["schedule.steps_per_batch"] = 1
        micro = trainer.args.per_device_train_batch_size
        if (fitting := largest_divisor(prompts * group, micro)) != micro:
            knobs["schedule.micro_batch"] = fitting
        return f"{problem} {fits} fit: {' '.join(f'--set {k}={v}' for k, v in knobs.items())}"
    return f"{problem} Not even 2 fit: --set grpo.max_completion_length={half}."


def _gpu_name() -> str:
    import torch

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f"{torch.cuda.get_device_name()} ({total / 2**30:.1f} GiB)"
