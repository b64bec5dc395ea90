"""The model card: what the model is, how it was made, what it measures, and that it is a toy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from rig.atomic import write_text

CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The toy model of rig

**A toy.** {parameters} parameters, trained from scratch in minutes on text that a script made up.
It exists so that the whole loop (train, export, serve, post, summarise) can be tried and tested on
any machine, without a download, a GPU or an account. It knows nothing about the world. Do not
judge any method by it, and do not rely on what it says.

It knows three small trades, asked for in the words of `bots/cards/prompts.py`,
`bots/articles/prompts.py` and `rig/model/reply_format.py`:

1. **Word problems** with small numbers. On purpose it mostly blurts out a wrong number and only now
   and then reasons, well, in the form of the system prompt: what `rig train` then teaches it to
   do always.
2. **A card's facts** become a post (JSON) that names the card and copies some of its figures.
3. **A text** becomes its leading sentences, or as many bullet points. It copies; it does not understand.

It speaks English as far as it speaks at all; asked for another language it answers in the language
of the text.

## How it was made

**Historical weights.** They were made in two runs by two earlier states of the code, before the history of
this repository begins, and are kept as they were. Today's code has never made them: it keeps the same lessons
and seeds, but its one run from nothing, `python -m tools.toy_model --out FOLDER`, was tried for a few steps
only and never at full length. The first run, on one H200 in 202 seconds, had these settings:

    --seed 1 --steps 3600 --batch-tokens 32768 --lr 2e-3

It reasoned a little too often (48 of 200 held-out problems were right already), so its wrong answers were
given a favourite, the last number of the question, and a second run went on from there, on one core of a CPU:

    --go-on first --seed 2 --steps 100 --batch-tokens 4096 --lr 3e-4

All text was made by `tools/toy_model/` and `train/data/arithmetic.py` from word lists and made-up syllables:
no data set, no real card, no real article. One word problem in eight is held out by a checksum of
its words; none of those was ever shown.

| | |
|---|---|
| architecture | Llama: 4 layers, hidden 256, feed-forward 768, 4 heads of 64, 2 KV heads, tied embeddings |
| tokenizer | byte-level BPE, {vocabulary} tokens, pre-tokenizer of Llama 3 (`llama-bpe`), single digits |
| context | 4,096 tokens |
| stored as | bfloat16, {size:,} bytes |
| seeds | 1, then 2 |
| sha256 of `model.safetensors` | `{sha256}` |
| licence | MIT, as the rest of rig |

The same seed gives the same lessons in the same order and the same first weights. The arithmetic of
another GPU or of another version of torch differs in the last bits, so weights trained again are
as good but not the same bytes.

## Figures

Measured by `python -m tools.toy_model --out rig/toy --only-card` on the CPU, in float32, after storing
and loading again, on held-out lessons: 200 problems (sampled: four times each at temperature 1.0),
200 invented cards, 40 invented texts of each length.

| figure | share |
|---|---|
{figures}
"""


def sha256(path: Path) -> str:
    """Checksum of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(folder: Path, figures: Mapping[str, float]) -> None:
    """Write `README.md` beside the weights, with their measured `figures`."""
    from safetensors import safe_open

    from tools.toy_model.tokenizer import VOCABULARY

    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    text = CARD.format(
        parameters=f"{count:,}",
        vocabulary=VOCABULARY,
        size=weights.stat().st_size,
        sha256=sha256(weights),
        figures="\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items()),
    )
    write_text(folder / "README.md", text)
