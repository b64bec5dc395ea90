"""Whether two formulas are one: math-verify is asked, on a budget that no reply can overrun.

math-verify stops a long comparison by the process's alarm, which works in the main thread alone, takes the
alarm from whoever set it, and makes a mark depend on how busy the machine is. Here the calls that it makes
are counted instead. What is no Python call (a power of a power, a factorial of thousands) is refused unread.
Its other traps: text that it can't read is searched for any number; letters are a product, so `listen` is
`silent`; units are cut off, so `5m` is 5.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 200
"""Characters; a longer formula is equal to none."""
DEEPEST = 8
"""Brackets within brackets."""
CALLS = 1_000_000
"""Python calls that one comparison may take: about a second; an ordinary one takes 20,000 to 300,000."""
TERMS = 400_000
"""Terms up to which a power of a sum may be multiplied out, which is one loop and no call."""

_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "lim", "max", "min", "gcd", "lcm", "mod", "det",
    "deg", "sqrt", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "infinity", "infty", "inf", "theta",
    "alpha", "beta", "pi", "ln",
}  # fmt: skip
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\}|\\[a-zA-Z]+")
_SIGNS = re.compile(r"[\\^=+*/|!<>_(\[{-]|[0-9]|(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_NO_FORMULA = re.compile(r"[0-9]\s*_|\A\s*[0-9]+(?:\s*[-:]\s*[0-9]+)+\s*\Z")
"""A number in another base, whose base math-verify does not see; a range, a date, a time, a ratio."""
_HOSTILE = re.compile(
    r"\^\s*[{(]*\s*-?\s*[0-9]{4}|[0-9]{3}\s*\)*\s*!|!\s*\)*\s*!|\^[^^]{0,40}\^[^^]{0,40}\^|[0-9.]{40}"
    r"|\^\s*(?:[0-9]|[{(][^{}()]*)\s*\^|\^\s*[{(][^{}()]*[!^]|[0-9]{5,}\s*[})]*\s*\^\s*\{?[0-9]{3}"
    r"|\\(?:sum|prod|i*int|oint|lim|binom|choose|limits|zeta|Gamma)(?![a-zA-Z])"
)
_POWER_OF_BRACKET = re.compile(r"[)}\]]\s*\^\s*[{(]*\s*([0-9]{1,9})")
_NAMES = "sin|cos|tan|cot|log|ln|exp|pi|theta|alpha|beta|infty"
_PLAINER = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<=[0-9])[eE]([+-]?[0-9]{1,3})(?![0-9A-Za-z])"), r"\\cdot 10^{\1}"),
    (re.compile(r"<=|≤"), r"\\le "),
    (re.compile(r">=|≥"), r"\\ge "),
    (re.compile(r"!=|≠"), r"\\ne "),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(rf"(?<![\\A-Za-z])({_NAMES})(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])"), r"\\infty "),
)
_LOCK = threading.RLock()


def is_formula(text: str) -> bool:
    """Signs, digits or single letters, and no words: prose with a dash in it is none.

    >>> [is_formula(one) for one in ("3x^2", "120", "well-known", "Paris", "cat")]
    [True, True, False, False, False]
    """
    if len(text) > LONGEST:
        return False
    runs: list[str] = re.findall(r"[^\W\d_]{3,}", _COMMAND.sub(" ", text))
    product = re.search(r"[0-9^*/+=\\]", text) is not None
    if any(run.lower() not in _FUNCTIONS and (len(run) > 3 or not product) for run in runs):
        return False
    return bool(_SIGNS.search(text)) and not _NO_FORMULA.search(text)


def is_hostile(text: str) -> bool:
    """Whether a formula could keep sympy busy where no call is counted.

    >>> [is_hostile(one) for one in ("9^{9^9}", "9^{99999}", "2000!", "(a+b+c)^{500}", "((a+b)^{20})^{20}")]
    [True, True, True, True, True]
    >>> is_hostile("(x^2+1)^{10}"), is_hostile("5!"), is_hostile("x^{100}")
    (False, False, False)
    """
    if len(text) > LONGEST or _HOSTILE.search(text):
        return True
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest > DEEPEST or _terms(text) > TERMS


def _terms(text: str) -> int:
    """At most so many terms come of multiplying out the powers of brackets."""
    powers = [int(power) for power in _POWER_OF_BRACKET.findall(text)]
    letters = len(set(re.findall(r"[A-Za-z]", _COMMAND.sub(" ", text)))) + 1
    return (
        math.comb(math.prod(powers) + letters, letters)
        if max(powers, default=0) <= 100
        else TERMS + 1
    )


@lru_cache(maxsize=4096)
def formulas_agree(said: str, gold: str) -> bool:
    r"""Whether two undressed formulas are equal, as math-verify sees it.

    >>> formulas_agree("1+x", "x + 1"), formulas_agree("x^3", "x^2"), formulas_agree(r"\frac{a}{2}", "a/2")
    (True, False, True)
    """
    said, gold = plain_latex(said), plain_latex(gold)
    if is_hostile(said) or is_hostile(gold):
        return False
    return bool(_on_budget(lambda: _ask(said, gold), CALLS))


def plain_latex(text: str) -> str:
    """`text` in the LaTeX that math-verify reads: `2**x >= sqrt(3)` is `2^x \\ge \\sqrt{3}`."""
    for pattern, plain in _PLAINER:
        text = pattern.sub(plain, text)
    return text.replace("$", " ").replace("\n", " ").strip()


def _ask(said: str, gold: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    reading = LatexExtractionConfig(normalization_config=_normalization(), boxed_match_priority=-1)
    wanted, found = (
        parse(f"${text}$", [reading], fallback_mode="no_fallback", parsing_timeout=None)
        for text in (gold, said)
    )
    return bool(wanted and found) and bool(
        verify(wanted, found, timeout_seconds=None, allow_set_relation_comp=True)
    )


@lru_cache(maxsize=1)
def _normalization() -> Any:
    """Math-verify's own, but for units, which `train.data.units` knows; and its warning about timeouts."""
    from math_verify.parser import NormalizationConfig

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return NormalizationConfig(
        basic_latex=True,
        units=False,
        malformed_operators=True,
        nits=True,
        boxed="none",
        equations=False,
    )


@lru_cache(maxsize=1)
def _warm_up() -> None:
    """What sympy does only once is on nobody's budget."""
    for pair in (("x+1", "1+x"), ("x^3", "x^2"), (r"\frac{1}{2}", "0.5"), ("x > 5", "5 < x")):
        _ask(*pair)


class _Spent(BaseException):
    """The budget is spent; no Exception, or sympy's own handlers would go on."""


def _on_budget(work: Callable[[], T], calls: int) -> T | None:
    """The result of `work`, or None once it has made more than `calls` Python calls in this thread."""
    left = calls
    before = sys.getprofile()

    def count(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal left
        left -= event == "call"
        if left < 0 and not frame.f_code.co_flags & inspect.CO_GENERATOR:
            raise _Spent  # in a generator that is being closed it would be lost

    with _LOCK:  # sympy's parser keeps one state for all threads
        _warm_up()
        sys.setprofile(count)
        try:
            return work()
        except (_Spent, RecursionError):
            return None
        finally:
            sys.setprofile(before)
