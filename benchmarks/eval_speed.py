"""How long a person waits for `rig eval`: 200 problems, at most 64 tokens, on the toy model.

    python benchmarks/eval_speed.py

Rivals in the same process, in turns: transformers' own `generate` on the same left-padded batches, and one
problem at a time, as most evaluation scripts do it (on 20 problems, scaled). All greedy, all texts compared.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from train.data import dataset
from train.eval.models import LocalModel, SamplingParams
from train.model import backends

PROBLEMS = 200
FEW = 20
TURNS = 3
SAMPLING = SamplingParams(max_tokens=64)


def by_generate(model: Any, tokenizer: Any, prompts: list[Any], batch: int) -> list[str]:
    """The texts that transformers' own `generate` gives, `batch` prompts at a time, longest first."""
    texts = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
    said = [""] * len(texts)
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        ids = tokenizer(
            [texts[one] for one in chosen],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            whole = model.generate(
                **ids, max_new_tokens=64, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        new = whole[:, ids["input_ids"].shape[1] :]
        for one, text in zip(
            chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            said[one] = text
    return said


def timed(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    """Measure, compare the texts, print one JSON object."""
    model, tokenizer = backends.load_for_inference("toy")
    rows = dataset.load_splits("generated:arithmetic", held_out=PROBLEMS, limit=1).held_out
    prompts = [row["prompt"] for row in rows]

    def rig() -> list[str]:
        return [
            one.text
            for one in LocalModel(model, tokenizer, 64).generate_completions(prompts, SAMPLING)
        ]

    rig()
    turns: dict[str, list[float]] = {"rig": [], "generate": [], "one_by_one": []}
    same = True
    for _ in range(TURNS):
        ours, said = timed(rig)
        theirs, said_by_generate = timed(lambda: by_generate(model, tokenizer, prompts, 64))
        single, said_singly = timed(lambda: by_generate(model, tokenizer, prompts[:FEW], 1))
        turns["rig"].append(ours)
        turns["generate"].append(theirs)
        turns["one_by_one"].append(single * PROBLEMS / FEW)
        same = same and said == said_by_generate and said[:FEW] == said_singly
    middle = {name: round(statistics.median(found), 2) for name, found in turns.items()}
    ratios = {
        f"{name}/rig": round(
            statistics.median(a / b for a, b in zip(turns[name], turns["rig"], strict=True)), 2
        )
        for name in ("generate", "one_by_one")
    }
    print(
        json.dumps(
            {
                "problems": PROBLEMS,
                "max_tokens": SAMPLING.max_tokens,
                "median_seconds": middle,
                "ratios": ratios,
                "same_texts": same,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
