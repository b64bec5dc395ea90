"""The five rewards of the notebook that everybody copies, under their names, with what they really do.

Together they pay 3.0 for the layout that the notebook's own prompt asks for, 3.5 for a layout it does not,
and 2.5 for a bare number without any tag. Kept so that its runs can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from train.rewards.builtin import Completion, Marks, completion_text, rewards

_STRICT = re.compile(
    r"<reasoning>\n[^\n]*\n</reasoning>\n<answer>\n[^\n]*\n</answer>\n\n?\Z",
)
_SOFT = re.compile(r"<reasoning>[^\n]*?</reasoning>\s*<answer>[^\n]*?</answer>")


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
