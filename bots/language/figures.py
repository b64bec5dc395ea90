"""Reads the figures of a text as a careful reader would: groups, decimals, scales, signs, units, words.

`14,000` is never 14 and `12 million` never 12; only a lone group after a lone mark (1.250) may be either a
fraction or twelve hundred, and then the text's own habits decide. Number words come from text2num.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache

import regex  # type: ignore[import-untyped]

from bots.language.detect import detect_language

_SCALES = {
    "thousand tausend duizend mille mil mila tusen tusind tys тыс тысяч тысячи k 千": 3,
    "lakh lakhs लाख": 5,
    "million millions millionen mio mn m miljoen miljoner millones millón milioni milione milhões": 6,
    "milhão milionów mln млн миллионов mm": 6,
    "crore crores करोड़": 7,
    "billion billions bn b milliarde milliarden mrd milliard milliards miljard miljarder miliardi miliardo "
    "mld млрд миллиардов": 9,
    "trillion trillions tn billionen": 12,
    "万 萬 만": 4, "亿 億 억": 8, "兆 조": 12,
}  # fmt: skip
_SCALE = {word: power for words, power in _SCALES.items() for word in words.split()}
_UNITS = """
%: % percent pc prozent procent процентов
pp: prozentpunkte
eur: € euro euros eur
gbp: £ gbp pounds pound
jpy: ¥ yen
usd: $ dollar dollars usd
inr: ₹ rupee rupees rs
crown: crown crowns krona kronor krone kroner kronen
franc: chf franc francs franken
km: km kilometre kilometres kilometer kilometers
mile: mile miles mi meilen
metre: m metre metres meter meters
cm: cm centimetre centimetres centimeter centimeters zentimeter
mm: mm millimetre millimetres millimeter millimeters
foot: ft foot feet
inch: inch inches
yard: yard yards
kg: kg kilo kilos kilogram kilograms kilogramm
g: gram grams gramm grammes
mg: mg milligram milligrams
ton: t ton tons tonne tonnes tonnen
lb: lb lbs pounds pound
°c: °c celsius
°f: °f fahrenheit
litre: l litre litres liter liters
gallon: gallon gallons
second: second seconds sekunden secondes
minute: minute minutes min minuten
hour: hour hours hr hrs stunde stunden heures
day: day days tag tage tagen jours días
week: week weeks woche wochen semaines semanas
month: month months monat monate monaten mois meses
year: year years jahr jahre jahren ans años anni anos
decade: decade decades
century: century centuries
hectare: ha hectare hectares
acre: acre acres
""" + "".join(
    f"{unit}: {unit}\n" for unit in ["kw", "mw", "gw", "kwh", "mwh", "gwh", "kb", "mb", "gb", "tb"]
)
_UNIT: dict[str, frozenset[str]] = {}
for _line in _UNITS.strip().splitlines():
    _name, _, _words = _line.partition(": ")
    for _word in _words.split():
        _UNIT[_word] = _UNIT.get(_word, frozenset()) | {_name}

_NUMBER = regex.compile(
    r"(?<![\p{Latin}\p{Cyrillic}\p{Greek}\d_.,/])(?P<sign>[-−–](?=\d))?"
    r"(?P<money>(?:US|A|C|NZ|HK)?[$€£¥₹][ \u00a0]?)?(?P<minus>[-−](?=\d))?"
    r"(?P<digits>\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?![.,]?\d)|\d+(?:[.,'’\u00a0\u202f٫٬]\d+)*)"
    r"(?P<after>[\s\u00a0-]{0,2}(?P<scale>[万萬만亿億억兆조]|\p{L}+\.?))?"
)
_UNIT_AFTER = regex.compile(
    r"[\s\u00a0-]{0,2}(?:square |cubic |US |metric )?(?P<unit>%|°[CF]|[$€£¥₹]|per cent|pour cent|por ciento|"
    r"percentage points|\p{L}+)"
)
_MINUS_WORDS = regex.compile(
    r"\b(?:minus|negative|below|under|loss|lost|losses|fell|fall|falls|fallen|falling|down|dropped|drop|declin\w*"
    r"|decreas\w*|shrank|shrunk|deficit|unter|minus|moins|baisse|verlust|frost|freez\w*|cut|reduc\w*|slid|slump\w*"
    r"|contract\w*)\b",
    regex.IGNORECASE,
)
_HEDGE = regex.compile(
    r"\b(?:about|around|roughly|nearly|almost|approximately|some|over|more than|less than|under|up to"
    r"|at least|close to|fast|rund|etwa|knapp|environ|près de|casi|circa|mehr als|über)\s+(?:[$€£¥]\s?)?$",
    regex.IGNORECASE,
)
_EXACT_WORDS = regex.compile(
    r"\b(half |quarter of )?(?:an?|one)\s+(half|hundred|thousand|million|billion|dozen)\b",
    regex.IGNORECASE,
)
_ARTICLES = {
    "half": Decimal("0.5"),
    "dozen": Decimal(12),
    "hundred": Decimal(100),
    "thousand": Decimal(1000),
    "million": Decimal(10**6),
    "billion": Decimal(10**9),
}
LONGEST = 40
"""Digits and marks of one figure; more are no figure that anybody compares."""
SPOKEN = ("en", "fr", "es", "pt", "de", "nl", "da", "it")
"""Languages whose number words text2num knows."""


@dataclass(frozen=True)
class Figure:
    """One figure of a text."""

    shown: str
    values: frozenset[Decimal]
    """What it may stand for, without its sign."""
    whole: bool
    """Whether it is written without a fraction."""
    negative: bool
    units: frozenset[str]
    """Canonical names of what it counts, as far as known; `pound` is two."""
    hedged: bool
    """Whether the text says that it is rounded."""
    minus: bool
    """Whether words beside it say that it is less than nothing, or a loss."""


def decimal_mark(text: str) -> str:
    """The mark before fractions in `text`: `.` or `,`; empty when the text does not show it.

    >>> decimal_mark("It cost 2.5 million."), decimal_mark("2,5 Prozent"), decimal_mark("12,000")
    ('.', ',', '')
    """
    votes = {".": 0, ",": 0}
    for found in regex.finditer(
        r"(?<![\d.,])(?:\d{1,15}([.,])(?:\d{1,2}|\d{4,15})|\d{1,3}([.,])\d{3}(?:\2\d{3})+)(?![.,]?\d)",
        text,
    ):
        if found[1]:
            votes[found[1]] += 1
        else:
            votes["," if found[2] == "." else "."] += 1
    if votes["."] == votes[","]:
        language = detect_language(text)
        return "." if language in ("en", "zh", "ja", "ko", "th", "hi") else "," if language else ""
    return max(votes, key=votes.__getitem__)


def read_figures(text: str, mark: str | None = None) -> list[Figure]:
    """The figures of `text`, in digits and in words; `mark` is its decimal mark, if known better.

    >>> [str(*one.values) for one in read_figures("12,000 of 1.5 million came to two towns")]
    ['12000', '1500000', '2']
    """
    mark = decimal_mark(text) if mark is None else mark
    return [*written_figures(text, mark), *_spoken(text, mark)]


def _spoken(text: str, mark: str) -> Iterator[Figure]:
    for found in _EXACT_WORDS.finditer(text):
        part = Decimal({"": "1", "h": "0.5", "q": "0.25"}[(found[1] or "")[:1].lower()])
        value = _plain(part * _ARTICLES[found[2].lower()])
        yield Figure(found[0], frozenset((value,)), True, False, frozenset(), True, False)
    language = detect_language(text) or "en"
    if language not in SPOKEN:
        return
    from text_to_num import alpha2digit  # type: ignore[import-untyped]

    for sentence in regex.split(r"(?<=[.!?\n])\s", _NUMBER.sub(_blotted, text)):
        turned = alpha2digit(sentence, language, 0)
        if turned != sentence:
            yield from written_figures(turned, "." if language == "en" else ",")


def _blotted(found: regex.Match[str]) -> str:
    """A figure in digits out of the way of those in words, with its scale."""
    scaled = (found["scale"] or "").lower() in _SCALE
    return "#" if scaled else f"#{found['after'] or ''}"


def written_figures(text: str, mark: str) -> Iterator[Figure]:
    """The figures that `text` writes in digits; `mark` is its decimal mark, empty where unknown."""
    for found in _NUMBER.finditer(text):
        digits, end = found["digits"], found.end("digits")
        power, unit_from = 0, end
        if word := (found["scale"] or "").rstrip(".").lower():
            power = _scale(word, found["after"], bool(found["money"]))
            unit_from = found.end("after") if power else end
        if len(digits) > LONGEST:
            continue
        values = frozenset(_plain(value * 10**power) for value in _readings(digits, mark))
        if not values:
            continue
        unit = _UNIT_AFTER.match(text, unit_from)
        units = _UNIT.get((found["money"] or "").strip().lower().lstrip("usahknzc"), frozenset())
        if unit and not units:
            units = _UNIT.get(unit["unit"].lower(), frozenset())
        before = text[max(0, found.start() - 60) : found.start()]
        sign = found["minus"] or (found["sign"] and (not before or before[-1] in " \t\n(\u00a0"))
        if power:
            end = found.end("after")
        if unit and _UNIT.get(unit["unit"].lower()):
            end = unit.end()
        yield Figure(
            shown=text[found.start() : end].strip(),
            values=values,
            whole=all(value == value.to_integral_value() for value in values),
            negative=bool(sign),
            units=units,
            hedged=bool(_HEDGE.search(before)),
            minus=bool(_MINUS_WORDS.search(text, max(0, found.start() - 60), end + 40)),
        )


def _scale(word: str, after: str, money: bool) -> int:
    """The power of ten of the word after a figure; a lone letter must touch it, and m means money."""
    if len(word) == 1 and word.isascii() and (after[:1].isspace() or (word == "m" and not money)):
        return 0
    return _SCALE.get(word, 0)


def _readings(digits: str, mark: str) -> set[Decimal]:
    """What the digits may mean; several marks of one kind part groups, the last other one a fraction.

    >>> [sorted(map(str, _readings(d, "."))) for d in ("12,000", "2.50", "1.250", "20,26", "1.234,5")]
    [['12000'], ['2.5'], ['1.25', '1250'], ['20.26'], ['1234.5']]
    """
    plain = regex.sub(r"['’\u00a0\u202f٬ ]", "", digits).replace("٫", ".")
    marks = regex.findall("[.,]", plain)
    forms: set[str] = set()
    if not marks:
        forms.add(plain)
    elif len(set(marks)) == 2:
        forms.add(plain.replace(marks[0], "").replace(marks[-1], "."))
    elif len(marks) > 1:
        if regex.fullmatch(r"\d{1,3}(?:[.,]\d{2,3})*[.,]\d{3}", plain):
            forms.add(regex.sub("[.,]", "", plain))
    else:
        head, tail = regex.split("[.,]", plain)
        group = len(tail) == 3 and head.lstrip("0") and len(head) <= 3
        if group:
            forms.add(head + tail)
        if not group or (tail != "000" and mark in ("", marks[0])):
            forms.add(f"{head}.{tail}")
    values: set[Decimal] = set()
    for form in forms:
        try:
            values.add(_plain(Decimal(form)))
        except InvalidOperation:
            continue
    return values


@cache
def _plain(value: Decimal) -> Decimal:
    """Without trailing zeros or exponent, so that equal values look alike."""
    short = value.normalize()
    return (
        short.quantize(Decimal(1))
        if short == short.to_integral_value() and short < 10**20
        else short
    )


def is_founded(figure: Figure, source: list[Figure]) -> bool:
    """Whether `source` holds this figure, in a unit and with a sign that may be meant."""
    same = [one for one in source if one.values & figure.values]
    if not same and (near := _rounded(figure, source)):
        same = near
    if not same:
        return False
    if figure.units:
        told = [one for one in same if one.units]
        if len(told) == len(same) and not any(one.units & figure.units for one in told):
            return False
    signs = {one.negative for one in same}
    return figure.negative in signs or figure.minus or any(one.minus for one in same)


def _rounded(figure: Figure, source: list[Figure]) -> list[Figure]:
    """What of `source` gives this figure when rounded to its digits: to two at least, to one when hedged."""
    found = []
    for value in figure.values:
        digits = len(value.as_tuple().digits) if value % 10 else len(str(int(value)).rstrip("0"))
        if value < 10 or (digits < 2 and not figure.hedged):
            continue
        slack = (
            Decimal("0.1")
            if figure.hedged and digits < 2
            else Decimal("0.06")
            if figure.hedged
            else Decimal("0.03")
        )
        step = Decimal(10) ** (value.adjusted() - digits + 1)
        allowed = min(step / 2 if not figure.hedged else value * slack, value * slack)
        found += [
            one
            for one in source
            if any(
                other
                and abs(other - value) <= allowed
                and other.adjusted() - value.adjusted() in (-1, 0, 1)
                for other in one.values
            )
            and len(str(next(iter(one.values))).replace(".", "").rstrip("0")) > digits
        ]
    return found
