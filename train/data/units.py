"""Units that may stand beside a number, and when two of them can't both be right."""

# ruff: noqa: SIM905 - lists of names read best as text

from __future__ import annotations

import re
from functools import lru_cache

_NAMES = {
    "length": "mm millimeter|cm centimeter|m meter metre|km kilometer|inch inches|foot feet ft|yard yd|mile",
    "mass": "mg milligram|g gram|kg kilogram kilo|ton tonne|ounce oz",
    "time": "second sec s|minute min|hour hr h|day|week|month|year yr",
    "money": "dollar USD|cent ¢|euro EUR",
    "volume": "ml milliliter millilitre|liter litre l L|gallon",
}
"""Kinds of unit; within a kind the names of one unit stand together."""

_UNIT = {
    name: (kind, at)
    for kind, listed in _NAMES.items()
    for at, same in enumerate(listed.split("|"))
    for name in same.split()
}

LETTERS = set("gmshlLtVWNJAKCFk")
"""Single letters that are units after a number; any other is a variable."""
SHORT = set(
    "km cm mm nm kg mg lb lbs oz ft in yd yds mi hr hrs min mins sec secs ms ml mL cl GB MB KB TB Hz kHz "
    "MHz GHz kW kWh MW mph kph km rpm am pm AM PM st nd rd th pts cal kcal USD EUR GBP CHF INR deg psi sq "
    "cu pcs yr yrs pct usd eur kJ kPa Pa eV mol kN mA mV".split()
)
"""Short units that may touch the digits."""
TWO_LETTERS = set(
    "am an as at be by do go he if in is it me my no of oh ok on per so to up us vs we rs id pm".split()
)
"""Words of two letters; any other pair, such as xy, is a product."""

_SUPERSCRIPT = re.compile(r"(?<![A-Za-z])([A-Za-z]+)\s?\^\s?\{?-?[0-9]\}?")


def drop_powers(text: str) -> str:
    """`text` with the powers of its units left out: m^2 is m, x^2 stays.

    >>> drop_powers("12 km^2"), drop_powers("3 x^2")
    ('12 km', '3 x^2')
    """
    return _SUPERSCRIPT.sub(lambda m: m[1] if _is_unit(m[1]) else m[0], text)


def _is_unit(word: str) -> bool:
    return word in SHORT or (len(word) == 1 and word in LETTERS) or len(word) > 3


def money_sign(text: str) -> str:
    """The currency of `$5` or `5€`; a pair of dollar signs is LaTeX's.

    >>> money_sign("$5"), money_sign("$5$"), money_sign("5€")
    ('dollar', '', 'euro')
    """
    if text.count("$") == 1:
        return "dollar"
    return "euro" if "€" in text else ""


def clash(said: str, gold: str) -> bool:
    """Whether the words beside two numbers name units that differ: cents and dollars, hours and minutes.

    >>> clash("cents", "dollars"), clash("dollars an hour", "dollars"), clash("", "km"), clash("hrs", "hours")
    (True, False, False, False)
    """
    if not said or not gold:
        return False
    one, other = _units(said), _units(gold)
    shared = {kind for kind, _ in one} & {kind for kind, _ in other}
    if one and other and not shared:
        return True
    return any(
        not {at for k, at in one if k == kind} & {at for k, at in other if k == kind}
        for kind in shared
    )


@lru_cache(maxsize=4096)
def _units(words: str) -> frozenset[tuple[str, int]]:
    found = set()
    for word in re.findall(r"[A-Za-z]+|¢", words[:200]):
        for name in (word, word.lower(), word.lower().removesuffix("s")):
            if name in _UNIT:
                found.add(_UNIT[name])
                break
    return frozenset(found)
