"""Attack a reward of whole texts with cheap ones: what earns next to nothing must not be worth learning.

Such a reward has no gold answer to be tried on. It brings its replies itself, as attributes: `worked_replies`
(rows to a reply each that is worth something), `cheap_replies` (rows to replies by what is cheap about them),
and `sample_rows`, for a check without a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rig.errors import WrongUse
from train.data.dataset import Row
from train.rewards.builtin import Marks, Reward

CHEAP = 0.2
"""A cheap reply may earn this share of the top mark."""
WORTH = 0.5
"""A worked reply must earn this share of the top mark on average."""
TOP = 1.0
"""The top mark of a reward that brings its replies."""
ROWS = 60
"""Rows on which they are tried: as many as a large step holds."""


@dataclass
class Attacked:
    """What the replies earned, on average."""

    worked: float
    cheap: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def brings_replies(reward: Reward) -> bool:
    """Whether `reward` brings replies to be tried on."""
    return hasattr(reward, "worked_replies") and hasattr(reward, "cheap_replies")


def attack_reward(
    reward: Any, rows: Sequence[Row], call: Callable[[Reward, Sequence[Row], Sequence[str]], Marks]
) -> Attacked:
    """Try the replies that `reward` brings on `rows`, all of a kind at once, as a step would hold them."""
    few = rows[:ROWS]
    mine = [
        row
        for row, mark in zip(few, call(reward, few, [""] * len(few)), strict=True)
        if mark is not None
    ]
    if not mine:
        problem = "It skips every row (gives None): are these the lessons that it is made for?"
        return Attacked(0.0, problems=[problem])
    found = Attacked(_mean(call(reward, mine, reward.worked_replies(mine))))
    if found.worked < WORTH * TOP:
        found.problems.append(
            f"Worked replies earn {found.worked:.2f} on average, less than {WORTH * TOP:g}."
        )
    cheap: Mapping[str, list[str]] = reward.cheap_replies(mine)
    for kind, replies in cheap.items():
        found.cheap[kind] = _mean(call(reward, mine, replies))
    if paid := [f"{kind} ({mark:.2f})" for kind, mark in found.cheap.items() if mark > CHEAP * TOP]:
        found.problems.append(f"Cheap replies earn more than {CHEAP * TOP:g}: {', '.join(paid)}.")
    return found


def sample_rows(name: str, reward: Any) -> list[Row]:
    """The rows on which the reward called `name` is tried without a recipe."""
    if not hasattr(reward, "sample_rows"):
        raise WrongUse(
            f"The reward {name} brings nothing to try it on: check a recipe that uses it."
        )
    rows: list[Row] = reward.sample_rows()
    return rows


def _mean(marks: Marks) -> float:
    known = [mark for mark in marks if mark is not None]
    return round(sum(known) / len(known), 4) if known else 0.0
