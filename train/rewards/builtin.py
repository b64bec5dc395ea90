"""The rewards: plain functions in TRL's contract, tested to give their top mark to the gold answer.

A reward takes `completions` and any data columns by name, ignores the rest, and returns one float or None
(skip) per completion. The first six are sound; the five below them are those of the notebook that everybody
copies, under their names, with what they really do written down. No torch here: they run anywhere.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rig.errors import RigError, WrongUse, suggest_name
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


# ----------------------------------------------------------------------------------------------------------
# The five of the well-known notebook. Together they pay 3.0 for the layout its own prompt asks for, 3.5 for
# a layout it does not, and 2.5 for a bare number without any tag. Kept so that its runs can be compared.


@rewards.register
def correctness_reward_func(
    completions: Sequence[Completion], answer: Sequence[str], **_: Any
) -> Marks:
    """2.0 when the text is the gold to the letter; without an answer tag the whole reply is compared.

    So a bare number is paid in full, and `2,000` for `2000` is not paid at all.

    >>> correctness_reward_func(["<answer>\\n4\\n</answer>", "4", "<answer>$4</answer>"], ["4"] * 3)
    [2.0, 2.0, 0.0]
    """
    return [
        2.0 if _notebook_answer(completion_text(said)) == gold else 0.0
        for said, gold in zip(completions, answer, strict=True)
    ]


@rewards.register
def int_reward_func(completions: Sequence[Completion], **_: Any) -> Marks:
    """0.5 when the answer is digits and nothing else: no sign, comma, point or currency.

    >>> int_reward_func(["<answer>7</answer>", "7", "<answer>-7</answer>", "<answer>1,000</answer>"])
    [0.5, 0.5, 0.0, 0.0]
    """
    return [
        0.5 if _notebook_answer(completion_text(said)).isdigit() else 0.0 for said in completions
    ]


@rewards.register
def strict_format_reward_func(completions: Sequence[Completion], **_: Any) -> Marks:
    """0.5 when each tag has a line of its own and thought and answer have ONE line each, newline at the end.

    Thoughts of several lines never fire it: 0.000 on all 250 steps of the notebook's own saved run.

    >>> form = "<reasoning>\\n%s\\n</reasoning>\\n<answer>\\n4\\n</answer>\\n"
    >>> one, two = form % "2+2", form % "2\\n2"
    >>> strict_format_reward_func([one, two, one.rstrip()])
    [0.5, 0.0, 0.0]
    """
    return [0.5 if _STRICT.match(completion_text(said)) else 0.0 for said in completions]


@rewards.register
def soft_format_reward_func(completions: Sequence[Completion], **_: Any) -> Marks:
    """0.5 when the reply begins with both blocks and NO line break stands inside the tags.

    So it excludes `strict_format_reward_func`, and neither accepts the layout that the prompt asks for.

    >>> soft_format_reward_func(["<reasoning>2+2</reasoning>\\n<answer>4</answer> and more",
    ...                          "<reasoning>\\n2+2\\n</reasoning>\\n<answer>\\n4\\n</answer>\\n"])
    [0.5, 0.0]
    """
    return [0.5 if _SOFT.match(completion_text(said)) else 0.0 for said in completions]


@rewards.register
def xmlcount_reward_func(completions: Sequence[Completion], **_: Any) -> Marks:
    """Up to 0.5 for tags on lines of their own, less 0.001 per character after the last; can be negative.

    Without a newline at the very end the WHOLE reply is charged, so long replies lose more.

    >>> whole = "<reasoning>\\n2+2\\n</reasoning>\\n<answer>\\n4\\n</answer>\\n"
    >>> [round(mark, 3) for mark in xmlcount_reward_func([whole, whole.rstrip(), "4"])]
    [0.5, 0.452, 0.0]
    """
    return [_xmlcount(completion_text(said)) for said in completions]


_STRICT = re.compile(
    r"<reasoning>\n[^\n]*\n</reasoning>\n<answer>\n[^\n]*\n</answer>\n\n?\Z",
)
_SOFT = re.compile(r"<reasoning>[^\n]*?</reasoning>\s*<answer>[^\n]*?</answer>")


def _notebook_answer(text: str) -> str:
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def _xmlcount(text: str) -> float:
    mark = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (
        text.count("\n</reasoning>\n") == 1
    )
    if text.count("\n<answer>\n") == 1:
        mark += 0.125 - 0.001 * len(text.rpartition("\n</answer>\n")[2])
    if text.count("\n</answer>") == 1:
        mark += 0.125 - 0.001 * (len(text.rpartition("\n</answer>")[2]) - 1)
    return mark


# ----------------------------------------------------------------------------------------------------------
# From a recipe's words to a function for TRL.


class BoundReward:
    """A reward with its options set: keeps its name for the log, pickles by name, and gives sound marks.

    What the person's own code does wrong becomes a sentence that names it: an error, too few marks, a mark
    that is no number.
    """

    def __init__(self, source: str, function: Reward, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.source = source
        self.function = function
        self.options = options

    def __call__(self, **columns: Any) -> Marks:
        """Mark the completions; a data column named like an option does not override it."""
        try:
            given = self.function(**(columns | self.options))
        except Exception as error:  # the person's own code may fail in any way
            raise self._failed(error) from error
        return self._sound(given, len(columns["completions"]))

    def _sound(self, given: Any, count: int) -> Marks:
        """`given` as floats; a RigError where they can't be that, or are not `count`."""
        try:
            marks = [None if mark is None else float(mark) for mark in given]
        except (TypeError, ValueError) as error:
            raise RigError(
                f"The reward {self.source} gave {given!r:.80}: it must return one number or None for each "
                "completion."
            ) from error
        if len(marks) != count:
            raise RigError(
                f"The reward {self.source} gave {len(marks)} marks to {count} completions: it must return "
                "one number or None for each."
            )
        if bad := [mark for mark in marks if mark is not None and not math.isfinite(mark)]:
            raise RigError(
                f"The reward {self.source} gave {bad[0]}, which nothing can be learnt from: return None "
                "where it has no opinion."
            )
        return marks

    def _failed(self, error: Exception) -> RigError:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return RigError(
            f"The reward {self.source} failed with {type(error).__name__}: {error} "
            f"({Path(place.filename).name}, line {place.lineno})."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        given = dict(self.options)
        return bind_reward, (self.source, given, given.pop("reply_format", TAUGHT))


class AsyncBoundReward(BoundReward):
    """The same for `async def` rewards, which TRL runs side by side."""

    async def __call__(self, **columns: Any) -> Marks:  # type: ignore[override]
        """Mark the completions."""
        try:
            given = await self.function(**(columns | self.options))  # type: ignore[misc]
        except Exception as error:  # the person's own code may fail in any way
            raise self._failed(error) from error
        return self._sound(given, len(columns["completions"]))


def bind_reward(
    name: str, options: Mapping[str, Any] | None = None, reply_format: ReplyFormat = TAUGHT
) -> Reward:
    """Return the reward called `name` (or `path.py:function`) with its options and the contract set.

    >>> bind_reward("length", {"most": 4})(completions=["abcdef"], prompts=["?"])
    [0.5]
    """
    function = rewards.find_function(name)
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise WrongUse(f"The reward {name} refuses unknown columns: end its parameters with `**_`.")
    known = [
        p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != "reply_format"
    ]
    for option in options or {}:
        if option not in known:
            has = suggest_name(option, known) if known else "it has none."
            raise WrongUse(f"The reward {name} has no option {option!r}; {has}")
    bound = dict(options or {})
    if "reply_format" in parameters:
        bound["reply_format"] = reply_format
    kind = AsyncBoundReward if inspect.iscoroutinefunction(function) else BoundReward
    return kind(name, function, bound)


def list_rewards() -> dict[str, str]:
    """Every reward that can be named, other packages' too, with the first line of its docstring."""
    rewards.load_entry_points()
    return {
        name: (inspect.getdoc(function) or "No description.").partition("\n")[0]
        for name, function in rewards.items()
    }
