"""Arithmetic word problems made on the spot: no download, no licence, and the held-out half can't leak.

A problem belongs to the held-out split by a checksum of its own words, so no seed and no number of rows
ever puts one question into both splits. Used by the recipes of the toy model and by its lessons.
"""

# ruff: noqa: SIM905 - lists of names read best as text

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Split = Literal["train", "held-out"]

NAMES = (
    "Ada Ben Carla Dan Ella Finn Grace Hugo Ida Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tara Vera "
    "Will Yara Zoe Nina Omar Lena Tom Anna Eric Lily Max Ruth"
).split()
THINGS = (
    "pens books apples stamps marbles coins shells cards cups plants eggs stones tickets buttons "
    "candles pears balls keys rings kites lamps boats nuts roses maps bricks toys cakes"
).split()
HOLDERS = "boxes bags baskets jars shelves crates drawers trays".split()


class ReasoningStep(NamedTuple):
    """One calculation of the worked answer."""

    verb: str
    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.verb}: {self.left} {self.sign} {self.right} = {self.result}."


class Problem(NamedTuple):
    """One word problem with its worked answer."""

    question: str
    answer: str
    """The whole number asked for, in digits."""
    kind: str
    """Which of `KINDS` it is."""
    steps: tuple[ReasoningStep, ...]
    """The one or two calculations that lead to the answer."""

    @property
    def reasoning_text(self) -> str:
        """The worked answer in one line, such as `Add: 3 + 4 = 7.`"""
        return " ".join(map(str, self.steps))

    @property
    def split_name(self) -> Split:
        """The split this question belongs to, whatever seed made it: one in eight is held out."""
        return "train" if zlib.crc32(self.question.encode()) % 8 else "held-out"


def addition_step(left: int, right: int) -> ReasoningStep:
    """Add two numbers.

    >>> str(addition_step(3, 4))
    'Add: 3 + 4 = 7.'
    """
    return ReasoningStep("Add", left, "+", right, left + right)


def subtraction_step(left: int, right: int) -> ReasoningStep:
    """Take `right` from `left`."""
    return ReasoningStep("Subtract", left, "-", right, left - right)


def multiplication_step(left: int, right: int) -> ReasoningStep:
    """Multiply two numbers."""
    return ReasoningStep("Multiply", left, "*", right, left * right)


def division_step(left: int, right: int) -> ReasoningStep:
    """Divide without remainder."""
    return ReasoningStep("Divide", left, "/", right, left // right)


class ProblemKind(NamedTuple):
    """One kind of problem: its numbers, its calculations, its wordings."""

    draw: Callable[[random.Random], tuple[int, int, int]]
    work: Callable[[int, int, int], tuple[ReasoningStep, ...]]
    wordings: tuple[str, ...]


def _change(rng: random.Random) -> tuple[int, int, int]:
    count, price = rng.randint(2, 8), rng.randint(2, 9)
    return count, price, count * price + rng.randint(2, 30)


def _less_than_product(rng: random.Random) -> tuple[int, int, int]:
    groups, each = rng.randint(2, 9), rng.randint(3, 12)
    return groups, each, rng.randint(2, groups * each - 1)


def _less_than_sum(rng: random.Random) -> tuple[int, int, int]:
    first, second = rng.randint(5, 50), rng.randint(3, 40)
    return first, second, rng.randint(2, first + second - 1)


def _quotient(rng: random.Random) -> tuple[int, int, int]:
    groups = rng.randint(2, 9)
    return groups * rng.randint(2, 12), groups, 0


def _difference(rng: random.Random) -> tuple[int, int, int]:
    first = rng.randint(10, 90)
    return first, rng.randint(2, first - 1), 0


KINDS: dict[str, ProblemKind] = {
    "add": ProblemKind(
        lambda rng: (rng.randint(3, 60), rng.randint(3, 39), 0),
        lambda a, b, c: (addition_step(a, b),),
        (
            "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
            "There are {a} {things} on the table. {name} puts {b} more beside them. "
            "How many {things} are there?",
            "{name} bought {a} {things} on Monday and {b} on Friday. "
            "How many {things} is that in all?",
            "{name} owns {a} {things}. {other} gives {name} {b} {things}. "
            "How many does {name} own then?",
        ),
    ),
    "subtract": ProblemKind(
        _difference,
        lambda a, b, c: (subtraction_step(a, b),),
        (
            "{name} has {a} {things} and loses {b}. How many {things} are left?",
            "There were {a} {things} in the shop. {name} sold {b} of them. "
            "How many {things} remain?",
            "{name} had {a} {things} and gave {b} to {other}. "
            "How many {things} does {name} still have?",
            "Of {a} {things}, {b} are broken. How many {things} are whole?",
        ),
    ),
    "multiply": ProblemKind(
        lambda rng: (rng.randint(2, 9), rng.randint(2, 12), 0),
        lambda a, b, c: (multiplication_step(a, b),),
        (
            "{name} has {a} {holders} with {b} {things} in each. "
            "How many {things} does {name} have?",
            "There are {a} {holders}. Each holds {b} {things}. How many {things} are there?",
            "{name} packs {b} {things} a day. How many {things} are packed after {a} days?",
            "Each of {a} children brings {b} {things}. How many {things} do they bring together?",
        ),
    ),
    "divide": ProblemKind(
        _quotient,
        lambda a, b, c: (division_step(a, b),),
        (
            "{name} shares {a} {things} equally among {b} friends. "
            "How many {things} does each friend get?",
            "{a} {things} are put into {b} {holders}, the same number in each. "
            "How many are in one?",
            "{name} splits {a} {things} into {b} equal piles. How many {things} are in each pile?",
        ),
    ),
    "add, add": ProblemKind(
        lambda rng: (rng.randint(3, 40), rng.randint(3, 30), rng.randint(2, 25)),
        lambda a, b, c: (addition_step(a, b), addition_step(a + b, c)),
        (
            "{name} has {a} {things}, {other} has {b} and a friend has {c}. "
            "How many {things} do they have together?",
            "{name} found {a} {things} on Monday, {b} on Tuesday and {c} on Sunday. "
            "How many {things} is that?",
            "One shelf holds {a} {things}, the next {b} and the last {c}. "
            "How many {things} are on the shelves?",
        ),
    ),
    "add, subtract": ProblemKind(
        _less_than_sum,
        lambda a, b, c: (addition_step(a, b), subtraction_step(a + b, c)),
        (
            "{name} has {a} {things}, gets {b} more and then loses {c}. "
            "How many {things} are left?",
            "A shop had {a} {things}. It bought {b} and sold {c}. How many {things} does it have now?",
            "{name} picked {a} {things} and {other} picked {b}. They gave away {c}. "
            "How many did they keep?",
        ),
    ),
    "multiply, add": ProblemKind(
        lambda rng: (rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 30)),
        lambda a, b, c: (multiplication_step(a, b), addition_step(a * b, c)),
        (
            "{name} has {a} {holders} of {b} {things} and {c} loose ones. "
            "How many {things} does {name} have?",
            "{name} buys {a} {holders} with {b} {things} each and finds {c} more. "
            "How many {things} is that?",
            "There are {a} rows of {b} {things} and {c} {things} beside them. "
            "How many {things} are there?",
        ),
    ),
    "multiply, subtract": ProblemKind(
        _less_than_product,
        lambda a, b, c: (multiplication_step(a, b), subtraction_step(a * b, c)),
        (
            "{name} has {a} {holders} of {b} {things} and gives away {c}. "
            "How many {things} are left?",
            "{name} fills {a} {holders} with {b} {things} each. Then {c} {things} break. "
            "How many are whole?",
            "{name} makes {b} {things} a day for {a} days and sells {c}. "
            "How many {things} are not sold?",
        ),
    ),
    "together": ProblemKind(
        lambda rng: (rng.randint(3, 45), rng.randint(2, 20), 0),
        lambda a, b, c: (addition_step(a, b), addition_step(a + b, a)),
        (
            "{name} has {a} {things}. {other} has {b} more than {name}. "
            "How many {things} do they have together?",
            "{other} owns {b} more {things} than {name}, who owns {a}. "
            "How many {things} do both own?",
        ),
    ),
    "change": ProblemKind(
        _change,
        lambda a, b, c: (multiplication_step(a, b), subtraction_step(c, a * b)),
        (
            "{name} buys {a} {things} for {b} dollars each and pays with {c} dollars. "
            "What is the change in dollars?",
            "{name} has {c} dollars and buys {a} {things} at {b} dollars each. "
            "How many dollars are left?",
            "One of the {things} costs {b} dollars. {name} takes {a} and hands over {c} dollars. "
            "How many dollars come back?",
        ),
    ),
}


def make_problem(rng: random.Random) -> Problem:
    """Make one problem of any kind and either split."""
    name = rng.choice(tuple(KINDS))
    kind = KINDS[name]
    a, b, c = kind.draw(rng)
    who, other = rng.sample(NAMES, 2)
    question = rng.choice(kind.wordings).format(
        a=a, b=b, c=c, name=who, other=other, things=rng.choice(THINGS), holders=rng.choice(HOLDERS)
    )
    steps = kind.work(a, b, c)
    return Problem(question, str(steps[-1].result), name, steps)


def make_problems(split: Split, seed: int) -> Iterator[Problem]:
    """Make problems of one split without end, no question twice.

    >>> first = next(make_problems("held-out", seed=1))
    >>> first.split_name, first == next(make_problems("held-out", seed=1))
    ('held-out', True)
    """
    rng = random.Random(f"{split} {seed}")
    seen: set[str] = set()
    while True:
        one = make_problem(rng)
        if one.split_name == split and one.question not in seen:
            seen.add(one.question)
            yield one


def make_rows(count: int, split: Split = "train", seed: int = 0) -> list[dict[str, str]]:
    """Return `count` rows with `question`, `answer` (digits) and `kind`.

    >>> sorted(make_rows(1)[0])
    ['answer', 'kind', 'question']
    """
    made = make_problems(split, seed)
    return [
        {"question": one.question, "answer": one.answer, "kind": one.kind}
        for one, _ in zip(made, range(count), strict=False)
    ]
