"""Which language a text is in: by its script, and among those of one script by their commonest words.

The words are jusText's lists, which come with trafilatura, the most frequent first. A few words are no
evidence: then the answer is empty, and nobody is accused of the wrong language.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from functools import cache
from pathlib import Path

import regex  # type: ignore[import-untyped]

_LISTS = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "lt": "Lithuanian",
    "lv": "Latvian", "nl": "Dutch", "no": "Norwegian_Bokmal", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sv": "Swedish",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
}  # fmt: skip
_SCRIPTS = {
    "Latin": "ca cs da de en es et fi fr hr hu id it lt lv nl no pl pt ro sk sl sv tr vi",
    "Cyrillic": "bg ru uk", "Arabic": "ar fa ur", "Greek": "el", "Hebrew": "he", "Devanagari": "hi",
    "Thai": "th", "Hangul": "ko", "Han": "zh", "Kana": "ja",
}  # fmt: skip
NEAR = (
    frozenset(("da", "no", "sv")),
    frozenset(("cs", "sk")),
    frozenset(("hr", "sl")),
    frozenset(("es", "ca", "pt")),
)
"""Languages that share so many words that a short text is not told apart."""
COMMONEST = 150
"""Words of each list that are looked at."""
MIN_WORDS = 8
"""Words below which a text of a shared script is in no language."""

_LETTER = regex.compile(
    r"(?P<Latin>\p{Latin})|(?P<Cyrillic>\p{Cyrillic})|(?P<Arabic>\p{Arabic})|(?P<Greek>\p{Greek})"
    r"|(?P<Hebrew>\p{Hebrew})|(?P<Devanagari>\p{Devanagari})|(?P<Thai>\p{Thai})|(?P<Hangul>\p{Hangul})"
    r"|(?P<Han>\p{Han})|(?P<Kana>[\p{Hiragana}\p{Katakana}])"
)
MOST = 20_000
"""Letters after which a text is known."""


def main_script(text: str) -> str:
    """The script of most letters (a key of `_SCRIPTS`); empty where there is none of them.

    >>> main_script("Hallo, 世界"), main_script("港は火曜日に再開した"), main_script("12")
    ('Latin', 'Kana', '')
    """
    found = Counter(letter.lastgroup for letter in _LETTER.finditer(text[:MOST]))
    if found["Kana"] > found["Han"] / 10:
        found["Kana"] += found.pop("Han", 0)
    return str(found.most_common(1)[0][0]) if found else ""


def detect_language(text: str) -> str:
    """The two-letter code of the language of `text`; empty in doubt.

    >>> detect_language("Der Hafen war neun Wochen geschlossen und ist nun wieder offen.")
    'de'
    >>> detect_language("Lisk, Holm"), detect_language("港口星期二重新开放。")
    ('', 'zh')
    """
    script = main_script(text)
    languages = _SCRIPTS.get(script, "").split()
    if len(languages) < 2:
        return languages[0] if languages else ""
    words = regex.findall(r"[\p{L}\p{M}'’]+", text[:MOST].lower())
    if len(words) < MIN_WORDS:
        return ""
    scores = sorted(
        ((sum(map(_weights(code).__getitem__, words)), code) for code in languages), reverse=True
    )
    (best, code), (second, _) = scores[:2]
    return code if best / len(words) > 0.08 and best > 1.15 * second else ""


def is_other_language(text: str, language: str) -> bool:
    """Whether `text` is clearly in another language than the one with this code.

    >>> is_other_language("The harbour opened again on Tuesday after nine weeks.", "de")
    True
    """
    script = main_script(text)
    wanted = next((name for name, codes in _SCRIPTS.items() if language in codes.split()), "")
    if not script or not wanted:
        return False
    if script != wanted:
        return {script, wanted} != {"Han", "Kana"} or script == "Kana"
    found = detect_language(text)
    near = any({found, language} <= group for group in NEAR)
    return bool(found) and found != language and not near


@cache
def _weights(code: str) -> Counter[str]:
    """What a word says for the language: the commonest most."""
    found = importlib.util.find_spec("justext")  # not imported: it would bring lxml into the daemon
    if found is None or found.origin is None:
        raise ModuleNotFoundError("justext")
    path = Path(found.origin).parent / "stoplists" / f"{_LISTS[code]}.txt"
    words = path.read_text("utf-8").lower().split()[:COMMONEST]
    weights: Counter[str] = Counter()
    for rank, word in enumerate(words):
        if not word.isdigit():
            weights[word] = max(weights[word], round(1 / math.log2(rank + 3), 3))  # type: ignore[assignment]
    return weights
