"""The rewards: plain functions in TRL's contract, tested to give their top mark to the gold answer.

A reward takes `completions` and any data columns by name, ignores the rest, and returns one float or None
(skip) per completion. No torch here: they run anywhere. `train.rewards.binding` makes of a recipe's words one
of these, one of the notebook's (`train.rewards.notebook`), or one of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rig.model.reply_format import TAUGHT, ReplyFormat
from rig.registry import Registry
from train.data import answers

Completion = str | Sequence[Mapping[str, Any]]
"""Plain text, or a conversation whose last message is the model's."""
Marks = list[float | None]
Reward = Callable[..., Marks]

rewards = Registry("reward")


def completion_text(completion: Completion) -> str:
    """Return what the model said.

    >>> completion_text("hi"), completion_text([{"role": "assistant", "content": "hi"}])
    ('hi', 'hi')
    """
    return completion if isinstance(completion, str) else str(completion[-1]["content"] or "")


@rewards.register
def correct(
    completions: Sequence[Completion],
    answer: Sequence[str | None],
    *,
    lenient: bool = False,
    reply_format: ReplyFormat = TAUGHT,
    **_: Any,
) -> Marks:
    """1.0 when the one answer block holds the gold answer, however it is written; `lenient` needs no block.

    >>> correct(["<answer>$1,000.00</answer>", "1000", "<answer>10,00</answer>"], ["1000"] * 3)
    [1.0, 0.0, 0.0]
    """
    find = answers.extract_final_answer if lenient else answers.extract_tagged_answer
    return [
        None
        if not gold
        else float(answers.matches_gold(find(completion_text(said), reply_format), gold))
        for said, gold in zip(completions, answer, strict=True)
    ]


@rewards.register
def close(
    completions: Sequence[Completion],
    answer: Sequence[str | None],
    *,
    reply_format: ReplyFormat = TAUGHT,
    **_: Any,
) -> Marks:
    """1.0 for the gold answer, else at most 0.5: less the farther the number is from the gold one.

    >>> close([f"<answer>{n}</answer>" for n in (100, 90, 50, 300, "many")], ["100"] * 5)
    [1.0, 0.45, 0.25, 0.0, 0.0]
    """
    return [
        None
        if not gold
        else _closeness(answers.extract_tagged_answer(completion_text(said), reply_format), gold)
        for said, gold in zip(completions, answer, strict=True)
    ]


def _closeness(said: str | None, gold: str) -> float:
    if answers.matches_gold(said, gold):
        return 1.0
    wanted, found = answers.parse_number(gold), answers.parse_number(said or "")
    if wanted is None or found is None:
        return 0.0
    error = abs(found - wanted) / max(abs(wanted), Fraction(1))
    return max(0.0, 1 - float(error)) / 2


@rewards.register
def format(
    completions: Sequence[Completion], *, reply_format: ReplyFormat = TAUGHT, **_: Any
) -> Marks:
    """1.0 for one thought, then one answer, and nothing else; both may run over many lines.

    >>> format(["<reasoning>\\n2+2\\nis 4\\n</reasoning>\\n<answer>\\n4\\n</answer>\\n", "4"])
    [1.0, 0.0]
    """
    return [float(reply_format.matches_text(completion_text(said))) for said in completions]


@rewards.register
def tags(
    completions: Sequence[Completion], *, reply_format: ReplyFormat = TAUGHT, **_: Any
) -> Marks:
    """A quarter for each of the four tags that stands there exactly once and after the one before it.

    >>> tags(["<reasoning>2+2</reasoning><answer>4</answer>", "<reasoning>2+2</reasoning>", "4"])
    [1.0, 0.5, 0.0]
    """
    wanted = (
        reply_format.reasoning_open,
        reply_format.reasoning_close,
        reply_format.answer_open,
        reply_format.answer_close,
    )
    return [_tags_in_order(completion_text(said), wanted) / 4 for said in completions]


def _tags_in_order(text: str, wanted: Sequence[str]) -> int:
    at, found = 0, 0
    for tag in wanted:
        if tag and text.count(tag) == 1 and (place := text.find(tag, at)) >= 0:
            at, found = place + len(tag), found + 1
    return found


@rewards.register
def length(
    completions: Sequence[Completion],
    *,
    least: int = 0,
    most: int = 2000,
    reply_format: ReplyFormat = TAUGHT,
    **_: Any,
) -> Marks:
    """1.0 for a thought of `least` characters or more and a reply of `most` or fewer; less beyond.

    >>> length(["abcd", "abcdef", "abcdefgh"], most=4)
    [1.0, 0.5, 0.0]
    >>> length(["<reasoning>ab</reasoning>"], least=4)
    [0.5]
    """
    marks: Marks = []
    for text in map(completion_text, completions):
        enough = min(1.0, len(reply_format.split_reply(text).thought) / least) if least else 1.0
        marks.append(enough * min(1.0, max(0.0, 2 - len(text) / most)))
    return marks


@rewards.register
def unrepeated(completions: Sequence[Completion], *, words: int = 4, **_: Any) -> Marks:
    """1.0 when no run of `words` words comes twice; falls with the share of runs that do.

    >>> unrepeated(["one two three four five", "so it is so it is so it is"], words=3)
    [1.0, 0.42857142857142855]
    """
    marks: Marks = []
    for completion in completions:
        said = completion_text(completion).split()
        runs = [tuple(said[at : at + words]) for at in range(len(said) - words + 1)]
        marks.append(len(set(runs)) / len(runs) if runs else 1.0)
    return marks
