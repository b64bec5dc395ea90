"""Makes articles about nothing: half grammar, half noise, so that copying is learnt and not the text.

A model that only saw fluent sentences would go on fluently where it should copy. So many words exist nowhere,
names return within one article as they do in real ones, and some sentences are plain strings of odd words.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.toy_model import word_lists as w

Sentence = str


def made_up(rng: Random) -> str:
    """A word that exists nowhere, one to four syllables long."""
    pick = rng.choice
    parts = [
        pick(w.ONSETS) + pick(w.VOWELS) + pick(w.CODAS)
        for _ in range(rng.choice((1, 1, 2, 2, 2, 3, 4)))
    ]
    if rng.random() < 0.3:
        parts.append(pick(w.ENDINGS))
    if rng.random() < 0.03:
        parts.append(pick(w.FOREIGN) + pick(w.CODAS))
    return "".join(parts)


def number(rng: Random) -> str:
    """A figure as articles write them."""
    luck = rng.random()
    if luck < 0.35:
        return str(rng.randint(1, 99))
    if luck < 0.55:
        return str(rng.randint(1900, 2030))
    if luck < 0.65:
        return f"{rng.randint(1, 99)},{rng.randint(0, 999):03}"
    if luck < 0.75:
        return f"{rng.randint(0, 99)}.{rng.randint(0, 99)}"
    if luck < 0.85:
        return f"{rng.randint(1, 100)}%"
    if luck < 0.93:
        return f"${rng.randint(1, 900)}"
    return str(rng.randint(100, 999999))


class Writer:
    """Writes the sentences of one article; people, places and odd words come back within it."""

    def __init__(self, rng: Random, oddity: float | None = None) -> None:
        """Write with `rng`; `oddity` is the share of made-up words (None: it differs by article)."""
        self.rng = rng
        self.oddity = rng.choice((0.05, 0.15, 0.3, 0.6)) if oddity is None else oddity
        self.odd = [made_up(rng) for _ in range(rng.randint(3, 25))]
        for _ in range(len(self.odd) // 3):  # words that begin alike are easily mixed up in copying
            self.odd.append(
                rng.choice(self.odd)[: rng.randint(2, 5)] + rng.choice(w.CODAS + w.ENDINGS)
            )
        self.people = [self._person() for _ in range(rng.randint(1, 6))]
        self.places = [
            rng.choice(w.PLACES) if rng.random() < 0.5 else made_up(rng).capitalize()
            for _ in range(4)
        ]
        self.forms: list[Callable[[], str]] = [
            self._event, self._event, self._event, self._quote, self._relation, self._list, self._soup,
        ]  # fmt: skip
        if oddity is None and rng.random() < 0.25:
            self.forms = [self._soup]
        elif oddity is None and rng.random() < 0.04:
            self.forms = [self._foreign]

    def sentence(self) -> Sentence:
        """One sentence, with its full stop."""
        text = self.rng.choice(self.forms)()
        return text[0].upper() + text[1:]

    def title(self) -> str:
        """A headline: no full stop."""
        rng = self.rng
        size = rng.randint(2, 10)
        text = " ".join(self._word() for _ in range(size))
        return text.title() if rng.random() < 0.5 else text.capitalize()

    def _person(self) -> str:
        rng = self.rng
        first = rng.choice(w.FIRST_NAMES) if rng.random() < 0.6 else made_up(rng).capitalize()
        last = rng.choice(w.LAST_NAMES) if rng.random() < 0.4 else made_up(rng).capitalize()
        luck = rng.random()
        if luck < 0.15:
            return f"{rng.choice(('Mr.', 'Mrs.', 'Dr.', 'Ms.', 'Sen.', 'Gov.'))} {last}"
        if luck < 0.2:
            return f"{first} {chr(rng.randint(65, 90))}. {last}"
        return last if luck < 0.35 else f"{first} {last}"

    def _word(self) -> str:
        rng = self.rng
        if rng.random() < self.oddity:
            return rng.choice(self.odd) if rng.random() < 0.7 else made_up(rng)
        return rng.choice(rng.choice((w.NOUNS, w.VERBS, w.ADJECTIVES, w.LITTLE_WORDS, w.NOUNS)))

    def _noun(self) -> str:
        rng = self.rng
        if rng.random() < self.oddity:
            return rng.choice(self.odd)
        noun = rng.choice(w.NOUNS)
        return noun + "s" if rng.random() < 0.3 and noun[-1] not in "syh" else noun

    def _thing(self) -> str:
        rng = self.rng
        luck = rng.random()
        if luck < 0.2:
            return rng.choice(self.people)
        if luck < 0.27:
            return f"{number(rng)} {self._noun()}"
        head = rng.choice(
            ("the", "the", "the", "a", "his", "her", "their", "this", "its", "our", "some", "every")
        )
        middle = f" {rng.choice(w.ADJECTIVES)}" if rng.random() < 0.4 else ""
        tail = f" of {self._thing()}" if rng.random() < 0.2 else ""
        return f"{head}{middle} {self._noun()}{tail}"

    def _verb(self) -> str:
        rng = self.rng
        luck = rng.random()
        if luck < self.oddity / 3:
            return made_up(rng) + "ed"
        if luck < 0.75:
            return rng.choice(w.VERBS)
        modal = rng.choice(
            (
                "will",
                "would",
                "can",
                "could",
                "may",
                "must",
                "should",
                "did not",
                "wants to",
                "has to",
            )
        )
        return f"{modal} {rng.choice(w.INFINITIVES)}"

    def _where(self) -> str:
        rng = self.rng
        luck = rng.random()
        if luck < 0.25:
            return f"in {rng.choice(self.places)}"
        if luck < 0.4:
            return f"on {rng.choice(w.DAYS)}"
        if luck < 0.5:
            return f"on {rng.choice(w.MONTHS)} {rng.randint(1, 28)}"
        if luck < 0.58:
            return f"in {rng.randint(1950, 2030)}"
        return f"{rng.choice(w.PREPOSITIONS)} {self._thing()}"

    def _clause(self) -> str:
        rng = self.rng
        adverb = f"{rng.choice(w.ADVERBS)} " if rng.random() < 0.2 else ""
        text = f"{self._thing()} {adverb}{self._verb()} {self._thing()}"
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            text += f" {self._where()}"
        return text

    def _event(self) -> str:
        rng = self.rng
        text = self._clause()
        luck = rng.random()
        if luck < 0.15:
            text = f"{self._where()}, {text}"
        elif luck < 0.3:
            joint = rng.choice(("and", "but", "while", "because", "although", "which means that"))
            text += f", {joint} {self._clause()}"
        elif luck < 0.36:
            text += f" ({self._thing()})"
        elif luck < 0.42:
            text += f" — {self._thing()} — {rng.choice(w.ADVERBS)}"
        return text + rng.choice("......?!")

    def _quote(self) -> str:
        rng = self.rng
        opening, closing = rng.choice(('""', "“”", '""', "‘’"))
        said = self._clause()
        if rng.random() < 0.5:
            return f"{opening}{said[0].upper()}{said[1:]},{closing} {rng.choice(self.people)} said."
        who, verb = rng.choice(self.people), rng.choice(w.VERBS)
        return f"{who} {verb} that {opening}{said}{closing} {self._where()}."

    def _relation(self) -> str:
        rng = self.rng
        return f"{rng.choice(self.people)}, {self._thing()} {self._where()}, {self._verb()} {self._clause()}."

    def _list(self) -> str:
        rng = self.rng
        items = [self._thing() for _ in range(rng.randint(2, 6))]
        return f"{self._thing()} {self._verb()} {', '.join(items[:-1])} and {items[-1]}."

    def _soup(self) -> str:
        rng = self.rng
        out = []
        for _ in range(rng.randint(3, 30)):
            word = self._word()
            luck = rng.random()
            if luck < 0.08:
                word = word.capitalize()
            elif luck < 0.1:
                word = word.upper()
            elif luck < 0.14:
                word = number(rng)
            elif luck < 0.16:
                word = rng.choice(w.ABBREVIATIONS)
            elif luck < 0.18:
                word = f"{word}-{self._word()}"
            elif luck < 0.19:
                word = f"({word})"
            elif luck < 0.2:
                word = rng.choice(("/", "&", "–", "…", "@", "#", "*", "+", "|", "•", "'"))
            elif luck < 0.22:
                word = word + rng.choice(("'s", "’s"))
            out.append(word + (rng.choice(",,,,;:") if rng.random() < 0.08 else ""))
        return " ".join(out) + rng.choice(".....?!") + rng.choice(("", "", "", "", "”", '"'))

    def _foreign(self) -> str:
        rng = self.rng
        letters = rng.choice(w.SCRIPTS)
        sizes = [rng.randint(2, 9) for _ in range(rng.randint(3, 9))]
        return " ".join("".join(rng.choices(letters, k=size)) for size in sizes) + "."


def article(rng: Random, sentences: int) -> tuple[str, list[Sentence]]:
    """Make a text of about `sentences` sentences; return it with the sentences of its body, in order."""
    writer = Writer(rng)
    body: list[Sentence] = []
    paragraphs: list[str] = []
    longest = rng.choice((1, 2, 4, 8))
    while len(body) < sentences:
        some = [writer.sentence() for _ in range(rng.randint(1, longest))]
        body += some
        paragraphs.append(" ".join(some))
        if rng.random() < 0.03:
            paragraphs.append(writer.title())
    if rng.random() < 0.15:
        paragraphs.insert(0, writer.title())
    return rng.choice(("\n\n", "\n\n", "\n")).join(paragraphs), body
