"""From a recipe's words to a function for TRL, whose own code's faults become sentences that name it."""

from __future__ import annotations

import functools
import inspect
import math
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rig.errors import RigError, WrongUse, suggest_name
from rig.model.reply_format import TAUGHT, ReplyFormat
from train.rewards import notebook  # noqa: F401  # its five are registered beside the sound six
from train.rewards.builtin import Marks, Reward, rewards


class BoundReward:
    """A reward with its options set: keeps its name for the log, pickles by name, and gives sound marks.

    A data column of an option's name (`lenient`) never sets the option.

    What the person's own code does wrong becomes a sentence that names it: an error, too few marks, a mark
    that is no number.
    """

    def __init__(self, source: str, function: Reward, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.source = source
        self.function = function
        self.options = options
        parameters = inspect.signature(function).parameters.values()
        self.left_out = {
            p.name
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default not in (p.empty, None)
        }

    def __call__(self, /, **columns: Any) -> Marks:
        """Mark the completions, which are one of the columns."""
        try:
            given = self.function(**self._arguments(columns))
        except Exception as error:  # the person's own code may fail in any way
            raise self._failed(error) from error
        return self._sound(given, len(columns["completions"]))

    def _arguments(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns, but for those that are called like an option; then the options."""
        kept = {name: cells for name, cells in columns.items() if name not in self.left_out}
        return kept | self.options

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

    async def __call__(self, /, **columns: Any) -> Marks:  # type: ignore[override]
        """Mark the completions."""
        try:
            given = await self.function(**self._arguments(columns))  # type: ignore[misc]
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
