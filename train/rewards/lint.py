"""Try a recipe's rewards before a run does: on the gold, on damage, and on what the model really says.

A reward that gives the gold less than its top mark, that sees no damage at all, or that no real completion
ever earns, costs a night; here it costs seconds. No torch unless real completions are sampled.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from rig.errors import RigError
from rig.model.reply_format import ReplyFormat
from train.data import answers
from train.data.dataset import Row
from train.rewards import attacks
from train.rewards.binding import bind_reward
from train.rewards.builtin import Marks, Reward

GOLDS = 40
"""Rows on which layouts and damage are tried; every gold is tried in the first layout."""
LAYOUTS = {
    "many lines": "{ro}\n{a}\n{b}\n{rc}\n{ao}\n{gold}\n{ac}\n",
    "one line each": "{ro}\n{a}\n{rc}\n{ao}\n{gold}\n{ac}\n",
    "inline": "{ro}{a}{rc}{ao}{gold}{ac}",
}
"""Ways to keep the taught form; the first is the one that the system prompt asks for."""
DRESSES = {
    "bare": "{}",
    "$": "${}",
    ".00": "{}.00",
    "boxed": "\\boxed{{{}}}",
    "unit": "{} dollars",
}
"""Ways to write the same number."""
THOUGHT = ("First I read the question.", "Then I work it out.")
LOW = 1e-9


@dataclass
class RewardReport:
    """One reward of the recipe, and how it behaved."""

    name: str
    weight: float
    top: float = 0.0
    """The highest mark that any gold got."""
    gold: dict[str, float | None] = field(default_factory=dict)
    """Mean mark of the gold by layout."""
    golds: dict[str, int] = field(default_factory=dict)
    """How many golds there are, and how many got the top mark in the first layout."""
    dress: dict[str, float | None] = field(default_factory=dict)
    """Mean mark of the gold by the way the number is written."""
    bare: dict[str, Any] = field(default_factory=dict)
    """How many golds there are, how many of them the bare answer of a model earns in full, and a pair
    (said, gold) that it does not."""
    near: dict[str, Any] = field(default_factory=dict)
    """How many near misses were tried, how many were paid as well as the gold, and a pair (said, gold)."""
    damaged: dict[str, float | None] = field(default_factory=dict)
    """Mean mark by kind of damage."""
    cheap: dict[str, float] = field(default_factory=dict)
    """Mean mark by kind of cheap reply, of a reward that brings its own (`train.rewards.attacks`)."""
    real: dict[str, float] | None = None
    """On real completions: n, mean, `fired` (share above the lowest mark), `top` (share at the top mark)
    and `signal` (share of prompts whose completions were marked differently)."""
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def lint_rewards(
    named: Sequence[tuple[str, float, dict[str, Any]]],
    rows: Sequence[Row],
    reply_format: ReplyFormat,
    real: Sequence[tuple[Row, list[str]]] = (),
) -> tuple[list[RewardReport], list[str]]:
    """Try every reward; return what was seen of each, and the problems of the recipe as a whole.

    Args:
        named: (name, weight, options) of each reward.
        rows: data rows with `question` and `answer`.
        reply_format: the contract that the recipe teaches.
        real: rows with completions that a model really gave to them.
    """
    found = []
    for name, weight, options in named:
        reward, tried = bind_reward(name, options, reply_format), RewardReport(name, weight)
        try:
            if attacks.brings_replies(reward):
                _try_own(reward, tried, rows, real)
            else:
                _try(reward, tried, rows, reply_format, real)
        except RigError as error:
            tried.problems.append(error.message)
        found.append(tried)
    return found, _of_all(found)


def call_reward(reward: Reward, rows: Sequence[Row], said: Sequence[str]) -> Marks:
    """Call `reward` as the trainer would, one completion per row."""
    extra = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    given: Any = reward(
        **{
            **extra,
            "prompts": [row["prompt"] for row in rows],
            "completions": [[{"role": "assistant", "content": text}] for text in said],
            "completion_ids": [list(range(len(text) // 4 + 1)) for text in said],
            "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: None,
        }
    )
    found: Marks = asyncio.run(given) if inspect.iscoroutine(given) else given
    return found


def format_reply(layout: str, gold: str, reply_format: ReplyFormat) -> str:
    """A reply in the taught form with `gold` as its answer."""
    return LAYOUTS[layout].format(
        ro=reply_format.reasoning_open, rc=reply_format.reasoning_close, ao=reply_format.answer_open,
        ac=reply_format.answer_close, a=THOUGHT[0], b=THOUGHT[1], gold=gold,
    )  # fmt: skip


def bare_reply(gold: str) -> str:
    """What a model that is asked for the final answer alone would write.

    >>> bare_reply("42 cups in all"), bare_reply("Tom has 42 cups."), bare_reply("3x^2"), bare_reply("1,000")
    ('42', '42', '3x^2', '1,000')
    """
    bare = answers.bare_answer(gold)
    alone = re.match(r"[-+]?[0-9][0-9,]*(?:\.[0-9]+)?(?=\s+[^\W\d_])", bare)
    same = alone is not None and answers.parse_number(alone[0]) == answers.parse_number(bare)
    return alone[0] if alone and same else bare


def near_misses(gold: str) -> list[str]:
    """Wrong answers of the gold's shape: another number; a formula with a sign changed; its number alone.

    >>> near_misses("42"), near_misses("3x^2"), near_misses("x > y"), near_misses("Paris")
    (['421'], ['4x^2', '3'], ['x < y'], ['Parit'])
    """
    plain = answers.parse_number(gold) is not None
    if plain and (digits := re.match(r"[^0-9]*[0-9][0-9,]*(?![0-9.,/])", gold)):
        return [digits[0].replace(",", "") + "1" + gold[digits.end() :]]
    if digit := re.search(r"[1-9]", gold):
        changed = "8" if digit[0] == "9" else str(int(digit[0]) + 1)
        alone = re.search(r"[0-9]+(?:\.[0-9]+)?", gold)
        near = [gold[: digit.start()] + changed + gold[digit.end() :]]
        return near if plain or not alone else [*near, alone[0]]
    for sign, other in (("<", ">"), (">", "<"), ("+", "-"), ("-", "+")):
        if sign in gold:
            return [gold.replace(sign, other, 1)]
    letters = list(re.finditer(r"[A-Za-z]", gold))
    if not letters:
        return []
    at = letters[-1].start()
    return [gold[:at] + chr(ord(gold[at]) + (-1 if gold[at] in "zZ" else 1)) + gold[at + 1 :]]


def damaged_replies(gold: str, reply_format: ReplyFormat) -> dict[str, str]:
    """Replies that are worth less than the gold, by what is wrong with them."""
    whole = format_reply("many lines", gold, reply_format)
    number = answers.parse_number(gold)
    wrong = f"not {gold}" if number is None else str(number + 1)
    block = f"{reply_format.answer_open}\n%s\n{reply_format.answer_close}\n"
    return {
        "wrong answer": format_reply("many lines", wrong, reply_format),
        "answer alone": gold,
        "no tags": f"{' '.join(THOUGHT)}\nThe answer is {gold}.",
        "two answers": whole + block % wrong,
        "cut off": whole[: int(len(whole) * 0.6)],
        "endless": "I read the question once more. " * 400,
        "empty": "",
    }


def _try(
    reward: Reward,
    tried: RewardReport,
    rows: Sequence[Row],
    reply_format: ReplyFormat,
    real: Sequence[tuple[Row, list[str]]],
) -> None:
    few = rows[:GOLDS]
    for layout in LAYOUTS:
        said = [format_reply(layout, _first(row), reply_format) for row in few]
        given = call_reward(reward, few, said)
        tried.gold[layout] = _mean(given)
        tried.top = max([tried.top, *(mark for mark in given if mark is not None)])
    whole = call_reward(reward, rows, _in_form([_first(row) for row in rows], reply_format))
    at_top = sum(mark is None or mark >= tried.top - LOW for mark in whole)
    tried.golds = {"n": len(rows), "top": at_top}
    tried.bare = _short_of(reward, rows, whole, reply_format)
    tried.near = _paid_near(reward, few, whole, reply_format)
    numbers = [row for row in few if re.fullmatch(r"-?[0-9][0-9,]*", row["answer"])]
    if numbers:
        for dress, form in DRESSES.items():
            golds = [form.format(row["answer"].replace("$", "")) for row in numbers]
            said = [format_reply("many lines", gold, reply_format) for gold in golds]
            tried.dress[dress] = _mean(call_reward(reward, numbers, said))
    kinds = [damaged_replies(_first(row), reply_format) for row in few]
    for kind in kinds[0]:
        tried.damaged[kind] = _mean(call_reward(reward, few, [one[kind] for one in kinds]))
    if real:
        tried.real = _on_real(reward, tried, real)
    _judge(tried)


def _try_own(
    reward: Reward, tried: RewardReport, rows: Sequence[Row], real: Sequence[tuple[Row, list[str]]]
) -> None:
    """A reward of whole texts: the replies that it brings take the place of golds and damage."""
    found = attacks.attack_reward(reward, rows, call_reward)
    tried.top, tried.cheap, tried.problems = found.worked, found.cheap, found.problems
    if real:
        tried.real = _on_real(reward, tried, real)


def _first(row: Row) -> str:
    """The gold of a row; of several the first."""
    return answers.accepted_answers(row["answer"])[0]


def _in_form(said: Sequence[str], reply_format: ReplyFormat) -> list[str]:
    return [format_reply("many lines", one, reply_format) for one in said]


def _short_of(
    reward: Reward, rows: Sequence[Row], whole: Marks, reply_format: ReplyFormat
) -> dict[str, Any]:
    """The bare answers that earn less than the gold as it stands in the data."""
    said = [bare_reply(_first(row)) for row in rows]
    given = call_reward(reward, rows, _in_form(said, reply_format))
    short = [
        (bare, row["answer"])
        for row, bare, mark, full in zip(rows, said, given, whole, strict=True)
        if mark is not None and full is not None and mark < full - LOW
    ]
    return {"n": len(rows), "top": len(rows) - len(short), "pair": short[0] if short else None}


def _paid_near(
    reward: Reward, rows: Sequence[Row], whole: Marks, reply_format: ReplyFormat
) -> dict[str, Any]:
    """The near misses that earn as much as the gold."""
    tries = [(at, near) for at, row in enumerate(rows) for near in near_misses(_first(row))]
    given = call_reward(
        reward, [rows[at] for at, _ in tries], _in_form([near for _, near in tries], reply_format)
    )
    paid = [
        (near, rows[at]["answer"])
        for (at, near), mark in zip(tries, given, strict=True)
        if mark is not None
        and mark >= (whole[at] or 0.0) - LOW
        and near not in answers.accepted_answers(rows[at]["answer"])
    ]
    return {"n": len(tries), "paid": len(paid), "pair": paid[0] if paid else None}


def _on_real(
    reward: Reward, tried: RewardReport, real: Sequence[tuple[Row, list[str]]]
) -> dict[str, float]:
    rows = [row for row, said in real for _ in said]
    given = call_reward(reward, rows, [text for _, said in real for text in said])
    known = [mark for mark in given if mark is not None]
    lowest = min(
        [*known, *(mark for mark in tried.damaged.values() if mark is not None)], default=0
    )
    groups, at = 0, 0
    for _, said in real:
        groups += len({mark for mark in given[at : at + len(said)] if mark is not None}) > 1
        at += len(said)
    n = len(known) or 1
    return {
        "n": len(known),
        "mean": round(sum(known) / n, 4),
        "fired": round(sum(mark > lowest + LOW for mark in known) / n, 4),
        "top": round(sum(mark >= tried.top - LOW for mark in known) / n, 4),
        "signal": round(groups / len(real), 4),
    }


def _judge(tried: RewardReport) -> None:
    asked = tried.gold["many lines"]
    seen = [mark for mark in tried.damaged.values() if mark is not None]
    everything = [*seen, *(mark for mark in tried.gold.values() if mark is not None)]
    if asked is None:
        tried.problems.append("It skips every gold (gives None): is the answer column right?")
        return
    if not everything or max(everything) - min(everything) < LOW:
        when = "never" if abs(max(everything, default=0)) < LOW else "always"
        tried.problems.append(f"It {when} fires: gold and damage all get {max(everything):g}.")
        return
    best = max(tried.gold, key=lambda layout: tried.gold[layout] or 0.0)
    if all(abs(mark - asked) < LOW for mark in seen):
        tried.problems.append(
            f"It can never fire in the form that the system prompt asks for, where gold and damage get "
            f"{asked:g}: only the layout {best!r} earns it."
        )
        return
    if short := tried.golds["n"] - tried.golds["top"]:
        tried.problems.append(
            f"{short} of {tried.golds['n']} gold answers get less than its top mark {tried.top:g} in "
            f"the form that the system prompt asks for."
        )
    if better := [
        k for k, mark in tried.damaged.items() if mark is not None and mark > asked + LOW
    ]:
        tried.problems.append(f"It pays more for damage than for the gold: {', '.join(better)}.")
    if all(mark >= asked - LOW for mark in seen):
        tried.problems.append("It sees no damage: every damaged reply gets as much as the gold.")
    if tried.bare["pair"]:
        said, gold = tried.bare["pair"]
        tried.problems.append(
            f"{tried.bare['n'] - tried.bare['top']} of {tried.bare['n']} gold answers are not earned by "
            f"the bare answer that a model would write ({said!r} for {gold!r})."
        )
    if tried.near["pair"] and (tried.damaged["wrong answer"] or 0.0) < asked - LOW:
        said, gold = tried.near["pair"]
        tried.problems.append(
            f"{tried.near['paid']} of {tried.near['n']} near misses are paid as the gold is "
            f"({said!r} for {gold!r})."
        )
    missed = [k for k, mark in tried.dress.items() if mark is not None and mark < asked - LOW]
    if missed:
        tried.remarks.append(f"It pays less for the gold written as: {', '.join(missed)}.")
    if tried.real and tried.real["n"]:
        if tried.real["fired"] == 0:
            tried.remarks.append("No real completion earned it: nothing can be learnt from it yet.")
        elif tried.real["top"] == 1:
            tried.remarks.append("Every real completion earns all of it: it teaches nothing new.")


def _of_all(found: Sequence[RewardReport]) -> list[str]:
    """What is wrong with the rewards of a recipe taken together."""
    counted = [
        tried for tried in found if tried.weight and tried.gold.get("many lines") is not None
    ]
    if not counted:
        return []

    def total(kind: str | None) -> float:
        marks = (t.gold["many lines"] if kind is None else t.damaged.get(kind) for t in counted)
        return sum(t.weight * (mark or 0.0) for t, mark in zip(counted, marks, strict=True))

    gold = total(None)
    return [
        f"Together the rewards pay {total(kind):g} for {kind!r} and {gold:g} for the gold."
        for kind in counted[0].damaged
        if total(kind) >= gold - LOW
    ]


def _mean(given: Marks) -> float | None:
    known = [mark for mark in given if mark is not None]
    return round(sum(known) / len(known), 4) if known else None
