"""What counts as a final answer, and when two are the same: exact where numbers are, deaf to their dress.

`1,000`, `$1,000`, `1000.00`, `\\boxed{1000}` and `1000 dollars` are one answer; `10,00`, `5 or 6` and `5*3`
are none, for an answer that hedges or leaves the sum to the reader must not pay. Pure: no torch. math-verify
is asked only where the gold itself is a formula.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice

from rig.model.reply_format import TAUGHT, ReplyFormat

SCALES = {"k": 3, "thousand": 3, "million": 6, "billion": 9, "bn": 9, "trillion": 12}
DASHES = "−–‒﹣－"

_ODD_SIGN = re.compile(f"[{DASHES}¼-¾⅐-⅞]")
_BLOB = r"(?:[0-9](?:[0-9.,]*[0-9])?|\.[0-9]+)"
_TOKEN = re.compile(
    r"(?P<sign>[-+])?\s?(?P<blob>" + _BLOB + r")(?:[eE](?P<power>[+-]?[0-9]{1,3})(?![0-9A-Za-z]))?"
    r"(?:\s*/\s*(?P<below>[0-9]+)(?![0-9.,]*[0-9]))?"
    r"(?:\s?(?P<scale>thousand|million|billion|trillion|bn|(?<=[0-9])k)\b)?",
    re.IGNORECASE,
)
_MIXED = re.compile(r"(?<![0-9.,/])([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)(?![0-9/])")
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SPACED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3})+(?![0-9])")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s?\^\s?\{?-?[0-9]\}?")
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_MONEY = re.compile(r"\\?\$|[€£¥₹]|\b(?:US|USD|EUR|GBP|Rs\.?)(?=\s?-?[0-9$])")
_PHRASE = re.compile(r"\banswer\b\**\s*(?:is|:|=|would be)+\s*:?[\s*]*", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w*])([*_`~]{1,3})(?=\S)(.*?)(?<=\S)\1(?![\w*])")
_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def extract_tagged_answer(text: str, reply_format: ReplyFormat = TAUGHT) -> str | None:
    """Return what stands in the one answer block; None without a block, or with several.

    >>> extract_tagged_answer("<reasoning>2+2</reasoning><answer> 4 </answer>")
    '4'
    >>> extract_tagged_answer("4"), extract_tagged_answer("<answer>4</answer><answer>5</answer>")
    (None, None)
    """
    opening, closing = reply_format.answer_open, reply_format.answer_close
    if not opening:
        return text.strip() or None
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    found = text.partition(opening)[2].partition(closing)[0].strip()
    return found or None


def extract_final_answer(text: str, reply_format: ReplyFormat = TAUGHT) -> str | None:
    r"""Return any clear final answer: in tags, boxed, after ####, after "the answer is", or the last number.

    A thought that was cut off holds no answer, whatever numbers stand in it.

    >>> said = ["<answer>4</answer>", "So it is \\boxed{4}.", "2+2=4\n#### 4"]
    >>> tuple(map(extract_final_answer, said))
    ('4', '4', '4')
    >>> said = ["The answer is 4 apples.", "I count 2 and 2, so 4.", "<reasoning>2+2=4"]
    >>> tuple(map(extract_final_answer, said))
    ('4 apples', '4', None)
    """
    text = _THINK.sub("", text)
    if reply_format.answer_open and reply_format.answer_open in text:
        last = text.rpartition(reply_format.answer_open)[2]
        return _one(last.partition(reply_format.answer_close or "\0")[0].strip()) or None
    if (boxed := _boxed(text)) is not None:
        return boxed.strip() or None
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip() or None
    if phrases := list(_PHRASE.finditer(text)):
        rest = re.split(r"\n|\.(?:\s|\Z)", text[phrases[-1].end() :].strip(), maxsplit=1)[0]
        if rest:
            return _one(rest, first=True)
    said = reply_format.split_reply(text).answer
    return _one(said) or None


def extract_gold_answer(text: str) -> str:
    """Return the answer of a GSM8K solution: what follows the last `####`; other texts are returned whole.

    >>> extract_gold_answer("She has 48/2 = <<48/2=24>>24 clips.\\n#### 1,024"), extract_gold_answer(" 18 ")
    ('1,024', '18')
    """
    return text.rpartition("####")[2].strip()


def matches_gold(said: str | None, gold: str) -> bool:
    r"""Whether `said` is the answer `gold`.

    >>> said = ["1000", "$1,000", "1000.00", r"\boxed{1000}", "1000 pens."]
    >>> all(matches_gold(one, "1,000") for one in said)
    True
    >>> [matches_gold(said, "1000") for said in ("10,00", "999", "1000 or 1001", "500*2", "-1000", "", None)]
    [False, False, False, False, False, False, False]
    >>> matches_gold("Paris.", "paris"), matches_gold(r"\frac{1}{2}", "0.5"), matches_gold("1+x", "$x + 1$")
    (True, True, True)
    """
    if not said or not said.strip() or not gold.strip():
        return False
    wanted = parse_number(gold)
    if wanted is not None and not re.match(r"[^0-9]*[A-Za-z]{2}[^0-9]*[0-9]", _bare(gold)):
        return parse_number(said) == wanted
    if _words(said) == _words(gold):
        return True
    return _is_formula(gold) and _formulas_agree(said, gold)


def same_answer(first: str, second: str) -> bool:
    """Whether two models gave one answer: the same number, or the same words; neither of them is the gold.

    >>> same_answer("It is 4.", "$4.00"), same_answer("Paris", "paris."), same_answer("4", "5")
    (True, True, False)
    """
    stated = parse_number(first)
    return parse_number(second) == stated if stated is not None else _words(first) == _words(second)


@lru_cache(maxsize=65536)
def parse_number(text: str) -> Fraction | None:
    r"""Return the one number that `text` states, exactly; None where there is none, or more than one.

    >>> [str(parse_number(t)) for t in ("$1,234.50 a day", "x = -3", "12 km^2", r"\frac{3}{4}", "2 million")]
    ['2469/2', '-3', '12', '3/4', '2000000']
    >>> parse_number("5 or 6"), parse_number("1,00"), parse_number("2^10"), parse_number("10:30")
    (None, None, None, None)
    """
    bare = _bare(text)
    if re.search(r"[=≈]", bare):
        bare = re.split(r"[=≈]", bare)[-1]
    if "^" in bare or re.search(r"\\[a-zA-Z]", bare):
        return None
    found = list(islice(_values(bare), 2))
    return found[0][1] if len(found) == 1 else None


def _values(bare: str) -> Iterator[tuple[str, Fraction | None]]:
    """Each number with its text; None where the digits make no number, such as 1,00."""
    for match in _TOKEN.finditer(bare):
        start = match.start("blob")
        if start and (bare[start - 1].isalpha() or bare[start - 1] == "_"):
            continue  # part of a name: H2O, x1
        yield match[0].strip(), _value(bare, match)


def _value(bare: str, match: re.Match[str]) -> Fraction | None:
    blob = match["blob"]
    if not (_PLAIN.fullmatch(blob) or _GROUPED.fullmatch(blob)) or len(blob) > 400:
        return None
    value = Fraction(blob.replace(",", ""))
    if match["below"]:
        if int(match["below"]) == 0 or bare[match.end("below") :].lstrip().startswith("/"):
            return None  # no number, or a date
        value /= int(match["below"])
        if value.denominator == 1:
            return None  # a division left to the reader
    value *= Fraction(10) ** int(match["power"] or 0)
    value *= Fraction(10) ** SCALES.get((match["scale"] or "").lower(), 0)
    return -value if match["sign"] == "-" and _is_sign(bare, match) else value


def _is_sign(bare: str, match: re.Match[str]) -> bool:
    """Whether the dash before a number negates it; `5-6` is a range and `Total - 5` a dash."""
    before = bare[: match.start("sign")]
    if match.start("blob") == match.end("sign"):
        return not before[-1:].isalnum()
    return not before.strip() or before.rstrip()[-1] in ":=("


def _bare(text: str) -> str:
    """`text` without its dress: boxes, LaTeX spacing, currency, emphasis; fractions written out."""
    boxed = _boxed(text)
    text = text if boxed is None else boxed
    text = _ODD_SIGN.sub(_plain, text)
    text = _WRAPPED.sub(r" \1", _FRACTION.sub(r"\1/\2", text))
    text = re.sub(r"\{,\}", ",", re.sub(r"(?<=[0-9])\\,(?=[0-9]{3})", ",", text))
    text = re.sub(r"\\[()\[\]!,;: ]|\\(?:left|right|quad)\b", "", text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _MONEY.sub("", text.replace("\\%", "%"))
    text = _UNIT_POWER.sub("", text)
    text = _SPACED.sub(lambda match: re.sub(r"\s", "", match[0]), text)
    text = _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
    return text.strip()


def _plain(sign: re.Match[str]) -> str:
    """A dash of any kind is a minus; one sign for a half is ` 1/2`."""
    if sign[0] in DASHES:
        return "-"
    return " " + unicodedata.normalize("NFKC", sign[0]).replace("⁄", "/")


def _boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}`, braces balanced; None without one."""
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


def _one(text: str, first: bool = False) -> str:
    """`text` itself where it states one number or none, else its last (or first) number."""
    if parse_number(text) is not None:
        return text if len(text) < 80 or first else _picked(text, -1)
    return _picked(text, 0 if first else -1) or text


def _picked(text: str, at: int) -> str:
    found = [said for said, _ in _values(_bare(text))]
    return found[at] if found else ""


def _words(text: str) -> str:
    """`text` reduced to what makes two answers in words the same."""
    bare = re.sub(r"\s+", " ", _bare(text)).casefold()
    return bare.strip(" .,:;!?()[]\"'“”")


def _is_formula(text: str) -> bool:
    """Signs or single letters, and no words: prose with a dash in it is none."""
    prose = re.search(r"[A-Za-z]{4,}", re.sub(r"\\[a-zA-Z]+", "", text))
    return not prose and len(text) <= 200 and bool(re.search(r"[\\^=+*/]|\b[a-z]\b", text))


@lru_cache(maxsize=4096)
def _formulas_agree(said: str, gold: str) -> bool:
    """Ask math-verify; what could keep sympy busy for ever is refused unread."""
    if len(said) > 200 or re.search(r"\^\s*\{?\s*-?[0-9]{4,}|[0-9]{3,}\s*!|\^[^^]*\^[^^]*\^", said):
        return False
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # a timeout is a plain no
    # Its alarm works in the main thread alone; on Windows it would start a process for every formula.
    alarm = threading.current_thread() is threading.main_thread() and os.name != "nt"
    pair = [
        parse(f"${text.strip().strip('$')}$", parsing_timeout=1 if alarm else None)
        for text in (gold, said)
    ]
    return all(pair) and bool(verify(*pair, timeout_seconds=1 if alarm else None))
