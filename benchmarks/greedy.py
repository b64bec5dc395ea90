"""Why greedy text depends on its company: how far a batch moves the scores, and how far apart they are.

    python benchmarks/greedy.py --model MODEL.gguf [--model ANOTHER.gguf] [--unpack]

Eight prompts are answered one by one, greedily. Then the same tokens are computed again: alone, alone with
the prompt in pieces, and all eight sequences in one batch; teacher-forced, so that all have the same past.
Each row says how far the scores moved (the largest move among the vocabulary), how far the best is ahead of
the second (the gap), and how often the best changed. `near` is the share of tokens whose gap is small enough
for a move to matter. `again alone` must be 0 throughout: the same computation twice.

`--unpack` writes the weights out in 32 bits (5 GB for 1B) and computes the same tokens with them. Those
products do not round their inputs to 8 bits, as products with 4-bit weights do, so two rows tell the cause:
`among eight` of the unpacked weights is what adding in another order costs, and `unpacked against packed` is
what rounding to 8 bits costs by itself, without any company.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serve.engine.llama import LlamaContext

SEQUENCES, TOKENS = 8, 32


def prompts(native: LlamaContext, seed: int) -> list[list[int]]:
    """Token ids of different lengths: words for a model that knows some, else any."""
    rng = random.Random(seed)
    words = [
        "the",
        "card",
        "is",
        "set",
        "and",
        "its",
        "attack",
        "has",
        "been",
        "read",
        "by",
        "all",
        "who",
        "draw",
        "from",
        "a",
        "deck",
    ]
    texts = [" ".join(rng.choices(words, k=rng.randrange(20, 200))) for _ in range(SEQUENCES)]
    return [native.tokenize(text, special=False, add_special=True) for text in texts]


def run(native: LlamaContext, rows: list[tuple[int, int, int, bool]]) -> list[Any]:
    """Decode (token, position, sequence, wants scores) rows in one batch; copies of the scores wanted."""
    for at, (token, pos, seq, wants) in enumerate(rows):
        native.token[at], native.pos[at] = token, pos
        native.seq[at], native.wants_logits[at] = seq, wants
    if native.decode(len(rows)) != 0:
        raise RuntimeError("the batch was refused")
    return [native.row_logits(at).copy() for at, row in enumerate(rows) if row[3]]


def read(native: LlamaContext, prompt: list[int], seq: int, piece: int = 512) -> Any:
    """Read a prompt alone, `piece` tokens at a time; the scores after it."""
    last = len(prompt) - 1
    rows = [(token, at, seq, at == last) for at, token in enumerate(prompt)]
    found = [run(native, rows[at : at + piece]) for at in range(0, len(rows), piece)]
    return found[-1][0]


def alone(
    native: LlamaContext, prompt: list[int], forced: list[int] | None = None, piece: int = 512
) -> tuple[list[int], list[Any]]:
    """Tokens chosen greedily (or `forced`) in sequence 0, and the scores behind each."""
    native.truncate_cells(0)
    scores = [read(native, prompt, 0, piece)]
    tokens = [forced[0] if forced else int(scores[0].argmax())]
    while len(tokens) < TOKENS:
        scores += run(native, [(tokens[-1], len(prompt) + len(tokens) - 1, 0, True)])
        tokens.append(forced[len(tokens)] if forced else int(scores[-1].argmax()))
    native.truncate_cells(0)
    return tokens, scores


def together(
    native: LlamaContext, asked: list[list[int]], said: list[list[int]]
) -> list[list[Any]]:
    """The scores behind the same tokens with all sequences in one batch, prompts read alone."""
    scores = [[read(native, prompt, seq)] for seq, prompt in enumerate(asked)]
    for step in range(TOKENS - 1):
        rows = [
            (tokens[step], len(asked[seq]) + step, seq, True) for seq, tokens in enumerate(said)
        ]
        for seq, found in enumerate(run(native, rows)):
            scores[seq].append(found)
    for seq in range(len(asked)):
        native.truncate_cells(seq)
    return scores


def compare(first: list[list[Any]], second: list[list[Any]]) -> dict[str, float]:
    """What moved between two computations of the same tokens."""
    gaps, moves, spreads, flips, near = [], [], [], 0, 0
    for one, other in zip(first, second, strict=True):
        for before, after in zip(one, other, strict=True):
            second_best, best = np.partition(before, -2)[-2:]
            move = float(np.abs(before - after).max())
            gaps.append(float(best - second_best))
            moves.append(move)
            spreads.append(float(before.std()))
            flips += int(before.argmax() != after.argmax())
            near += int(best - second_best <= 2 * move)
    return {
        "tokens": len(gaps),
        "spread of the scores": float(np.median(spreads)),
        "move, median": float(np.median(moves)),
        "move, largest": max(moves),
        "gap, median": float(np.median(gaps)),
        "gap, tenth": float(np.quantile(gaps, 0.1)),
        "near": near / len(gaps),
        "changed": flips,
        "texts alike": sum(
            all(a.argmax() == b.argmax() for a, b in zip(one, other, strict=True))
            for one, other in zip(first, second, strict=True)
        ),
    }


def unpack(path: Path) -> Path:
    """The same weights in 32 bits, in a file beside `path`."""
    wide = path.with_name(f"{path.stem}-unpacked.gguf")
    if not wide.is_file():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
        part = wide.with_suffix(".part")
        if llama_cpp.llama_model_quantize(
            str(path).encode(), str(part).encode(), ctypes.byref(params)
        ):
            sys.exit(f"{path} could not be unpacked: is the disk full?")
        part.rename(wide)
    return wide


class Trial:
    """One model with one kind of attention, and what it says greedily."""

    def __init__(self, path: Path, asked: argparse.Namespace, *, flash: bool) -> None:
        self.name, self.flash = path.stem, flash
        self.native = LlamaContext(
            path,
            ctx=4096,
            batch=512,
            sequences=SEQUENCES,
            threads=asked.threads,
            flash_attn=flash,
        )
        self.asked = prompts(self.native, asked.seed)

    def alone(
        self, forced: list[list[int]] | None = None, piece: int = 512
    ) -> tuple[list[list[int]], list[Any]]:
        """Every prompt by itself: tokens and scores."""
        given: list[list[int] | None] = [*forced] if forced else [None] * len(self.asked)
        pairs = [alone(self.native, p, f, piece) for p, f in zip(self.asked, given, strict=True)]
        return [tokens for tokens, _ in pairs], [scores for _, scores in pairs]


def trials(path: Path, asked: argparse.Namespace) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Rows of the table for one model."""
    for flash in (True, False):
        kind = "flash" if flash else "plain"
        trial = Trial(path, asked, flash=flash)
        said, scores = trial.alone()
        yield trial.name, kind, "again alone", compare(scores, trial.alone(said)[1])
        pieces = trial.alone(said, piece=50)[1]
        yield trial.name, kind, "alone, prompt in pieces of 50", compare(scores, pieces)
        company = together(trial.native, trial.asked, said)
        yield trial.name, kind, "among eight", compare(scores, company)
        del trial
        if asked.unpack:
            wide = Trial(unpack(path), asked, flash=flash)
            _, exact = wide.alone(said)
            company = together(wide.native, wide.asked, said)
            yield wide.name, kind, "among eight", compare(exact, company)
            yield path.stem, kind, "unpacked against packed", compare(scores, exact)
            del wide


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--unpack", action="store_true", help="compute with 32-bit weights as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    heading = False
    for path in asked.model:
        for *names, found in trials(path, asked):
            if not heading:
                columns = ["model", "attention", "computed", *found]
                print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
                heading = True
            figures = [f"{value:.3g}" for value in found.values()]
            print("| " + " | ".join([*names, *figures]) + " |", flush=True)


if __name__ == "__main__":
    main()
