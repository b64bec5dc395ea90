"""What does not change an answer is taken off it: boxes, LaTeX spacing, currency, emphasis, odd signs.

Every digit, dash and fraction of Unicode becomes its plain one first: what follows need not know them.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from train.data import units

_DASHES = "−‐‑‒–—―⁻﹘﹣－"
_SUPERSCRIPTS = {
    **{sign: str(at) for at, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, "⁻": "-", "⁺": "+", "ⁿ": "n",
}  # fmt: skip
_SIGNS = str.maketrans(
    {
        **dict.fromkeys(_DASHES, "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad", None),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "),
        **{chr(0xFF01 + at): chr(0x21 + at) for at in range(94) if chr(0x21 + at) != "-"},
        "⁄": "/", "∕": "/", "÷": "/", "×": "\\times ", "✕": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ",
        "π": "\\pi ", "∞": "\\infty ", "θ": "\\theta ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ",
        "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∩": "\\cap ", "°": " degrees ", "º": " degrees ",
        "¢": " cents",
        "’": "'", "“": '"', "”": '"', "，": ",", "≈": "\\approx ",
    }
)  # fmt: skip
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9]+|[A-Za-z]))")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACES = re.compile(
    r"(?<!\\)\\[()\[\]!,;: ]|\\(?:left|right|quad|qquad|displaystyle|limits)(?![a-zA-Z])"
)
_FRACTION = re.compile(
    r"(?P<whole>[0-9]\s*)?\\[dtc]?frac\s*(?:\{(?P<a>[^{}]*)\}|(?P<b>[0-9]))\s*(?:\{(?P<c>[^{}]*)\}|(?P<d>[0-9]))"
)
_DEGREES = re.compile(r"\s?\^\s?\{?\s?\\circ\s?\}?|\\degree(?![a-z])|\\circ(?![a-z])")
_POWER_OF_TEN = re.compile(
    r"(?:(?P<times>(?<=[0-9])\s*(?:\\times|\\cdot|\*|x|X)\s*)|(?<![0-9.,^*/xX}a-wyzA-WYZ])(?<!\*\s)(?<!\\cdot\s)(?<!times\s))"
    r"10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<a>[-+]?[0-9]{1,3})\s*\}|\((?P<b>[-+]?[0-9]{1,3})\)|(?P<c>[-+]?[0-9]{1,3}))(?![0-9.^!])"
)
_EMPHASIS = re.compile(r"(?<![\w*])([*_`~]{1,3})(?=\S)([^\n]*?)(?<=\S)\1(?![\w*])")
_MONEY = re.compile(r"\\?\$|[€£¥₹₩₽₺₫฿₦₱₴₪]|\b(?:US|USD|EUR|GBP|CHF|INR|Rs\.?)(?=\s?-?[0-9$])")
_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=\\?\$?[0-9.])", re.IGNORECASE)
_SPACED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_TICKED = re.compile(
    r"(?<![0-9A-Za-z'_])[0-9]{1,3}(?:'[0-9]{3})+(?![0-9'_])|(?<![\w'])[0-9]{1,3}(?:_[0-9]{3})+(?!\w)"
)
_MIXED = re.compile(r"(?<![0-9.,/])([0-9]+)\s+(?:and\s+)?([0-9]+)\s*/\s*([0-9]+)(?![0-9/])")
_NUMBER = re.compile(r"\s*-?[0-9][0-9.,]*\s*")


@lru_cache(maxsize=65536)
def undress(text: str) -> str:
    r"""Return `text` without its dress; what it says of numbers and letters stays as it was written.

    >>> undress(r"\boxed{3\tfrac12}"), undress("**$1,000**"), undress("−5 m²"), undress(r"45^\circ")
    ('3\\frac{1}{2}', '1,000', '-5 m^2', '45 degrees')
    """
    boxed = find_boxed(text)
    text = text if boxed is None else boxed
    if not text.isascii():
        text = plain_signs(text)
    if "\\" in text:
        text = _undress_latex(text)
    text = text.replace("{,}", ",")
    return _MONEY.sub("", _EMPHASIS.sub(r"\2", text)).strip()


@lru_cache(maxsize=65536)
def write_out(text: str) -> str:
    r"""Return undressed text with its numbers in one form: fractions, mixed numbers, powers of ten, minus.

    >>> write_out(r"3\frac{1}{2}"), write_out(r"3 \times 10^8"), write_out("minus 5 m^2"), write_out("1 000")
    ('7/2', '3e8', '-5 m', '1000')
    >>> write_out(r"\frac{a}{2}"), write_out("3x^2")
    ('\\frac{a}{2}', '3x^2')
    """
    text = _FRACTION.sub(_written_out, text) if "\\" in text else text
    text = _POWER_OF_TEN.sub(_power_of_ten, text) if "10" in text else text
    text = units.drop_powers(text) if "^" in text else text
    text = _MINUS.sub("-", text)
    text = _SPACED.sub(lambda match: match[0].replace(" ", ""), text)
    text = _TICKED.sub(lambda match: re.sub("['_]", "", match[0]), text)
    return _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text).strip()


def plain_signs(text: str) -> str:
    """`text` with Unicode's dashes, digits, fractions and signs as plain ones, or as LaTeX.

    >>> plain_signs("x² ≤ −½"), plain_signs("４２"), plain_signs("√2")
    ('x^2 \\\\le  - 1/2', '42', '\\\\sqrt{2}')
    """
    text = _RAISED.sub(_raised, text)
    text = _ROOT.sub(lambda m: r"\sqrt{%s}" % (m[1] or m[2]), text)
    return "".join(map(_plain_sign, text.translate(_SIGNS)))


def _raised(found: re.Match[str]) -> str:
    power = "".join(_SUPERSCRIPTS[sign] for sign in found[0])
    return f"^{power}" if len(power) == 1 else f"^{{{power}}}"


def _plain_sign(sign: str) -> str:
    if sign.isascii():
        return sign
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    if unicodedata.decomposition(sign).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", sign).replace("⁄", "/")
    return sign


def _undress_latex(text: str) -> str:
    text = _WRAPPED.sub(r" \1", text)
    text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3})", ",", text)
    text = _SPACES.sub("", text)
    text = _DEGREES.sub(" degrees ", text)
    return _FRACTION.sub(_braced, text).replace("\\%", "%")


def _braced(found: re.Match[str]) -> str:
    """`\\frac12` and `\\tfrac{1}2` as `\\frac{1}{2}`."""
    above, below = found["a"] or found["b"] or "", found["c"] or found["d"] or ""
    return f"{found['whole'] or ''}\\frac{{{above}}}{{{below}}}"


def _written_out(found: re.Match[str]) -> str:
    """`\\frac{1}{2}` as 1/2, behind a whole number as a mixed one; what holds letters stays LaTeX."""
    whole, above, below = (
        found["whole"] or "",
        found["a"] or found["b"] or "",
        found["c"] or found["d"] or "",
    )
    if _NUMBER.fullmatch(above) and _NUMBER.fullmatch(below):
        return f"{whole.strip()}{' ' if whole else ''}{above.strip()}/{below.strip()}"
    return found[0]


def _power_of_ten(found: re.Match[str]) -> str:
    power = found["a"] or found["b"] or found["c"]
    return f"{'' if found['times'] else '1'}e{power}"


def find_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}`, braces balanced; None without one.

    >>> find_boxed("so \\\\boxed{\\\\frac{1}{2}}."), find_boxed("so 1/2")
    ('\\\\frac{1}{2}', None)
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    inside = start + len("\\boxed{")
    for at in range(inside, len(text)):
        if text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth < 0:
                return text[inside:at]
    return None
