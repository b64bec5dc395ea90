"""How --length, --bullets, --focus, --language and --style become the one sentence that asks the model.

The sentences are those the toy model was trained on; a larger model understands them as well.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

from bots.documents.sanitise import clean_line, defuse_marks
from rig.errors import RigError, WrongUse, suggest_name

SENTENCES = {"short": 1, "medium": 3, "long": 7}
BULLETS = {"short": 3, "medium": 5, "long": 7}
TOKENS_EACH = 90
"""Tokens allowed for one sentence or bullet; a long one takes some fifty."""
MAX_STYLE = 8_000
"""Characters of a template."""
NOTES = "Write a summary of 6 sentences."
"""What is asked of each part of a long text: nothing of length, focus or language, so that the notes
serve every later question on the same text."""

LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True)
class SummaryRequest:
    """What the reader wants of a summary."""

    length: str = "medium"
    """`short`, `medium`, `long`, or a number of sentences (of points, with `bullets`)."""
    bullets: bool = False
    language: str = ""
    """A name or a two-letter code; empty leaves it to the model."""
    focus: str = ""
    style: str = ""
    """The words of the reader's own template; empty for ours."""

    @property
    def num_points(self) -> int:
        """Sentences or bullets asked for."""
        named = BULLETS if self.bullets else SENTENCES
        if self.length in named:
            return named[self.length]
        if self.length.isascii() and self.length.isdigit() and 1 <= int(self.length) <= 100:
            return int(self.length)
        raise WrongUse(
            f"--length is short, medium, long or a number from 1 to 100, not {self.length!r}."
        )

    @property
    def max_tokens(self) -> int:
        """Tokens that the answer may take."""
        return max(self.num_points, 3) * TOKENS_EACH if not self.style else 1024

    @property
    def as_it_is(self) -> bool:
        """Whether a text that is short enough is already what was asked for."""
        return not (self.bullets or self.language or self.focus or self.style)

    def task_sentence(self) -> str:
        """The sentence that asks.

        >>> SummaryRequest().task_sentence()
        'Write a summary of 3 sentences.'
        >>> SummaryRequest("1", focus="costs", language="de").task_sentence()
        'Write a summary of 1 sentence. Focus on costs. Write in German.'
        >>> SummaryRequest("3", bullets=True).task_sentence()
        'Write a summary as a list of 3 bullet points.'
        """
        count, points = self.num_points, "bullet point" if self.bullets else "sentence"
        amount = f"{count} {points}{'s' if count > 1 else ''}"
        words = f"Write a summary {'as a list' if self.bullets else ''} of {amount}.".replace(
            "  ", " "
        )
        focus, language = (
            defuse_marks(clean_line(self.focus)).rstrip("."),
            named_language(self.language),
        )
        used: set[str] = set()
        if self.style:
            words = _filled(
                self.style, {"length": amount, "focus": focus, "language": language}, used
            )
        if focus and "focus" not in used:
            words += f" Focus on {focus}."
        if language and "language" not in used:
            words += f" Write in {language}."
        return words


def named_language(language: str) -> str:
    """The name of a language given by name or code.

    >>> named_language("fr"), named_language("Latin")
    ('French', 'Latin')
    """
    if len(language) > 40 or any(not (c.isalpha() or c in " -()") for c in language):
        raise WrongUse(f"--language takes a name or a two-letter code, not {language[:60]!r}.")
    return LANGUAGES.get(language.lower(), language)


def read_style(path: Path) -> str:
    """Read a template: text that may name $length, $focus and $language ($$ is a dollar sign)."""
    try:
        text = path.read_text("utf-8").strip()
    except FileNotFoundError:
        raise WrongUse(f"There is no template {path}.") from None
    except UnicodeDecodeError:
        raise RigError(f"{path} is not a text file in UTF-8.") from None
    if not text or len(text) > MAX_STYLE:
        raise WrongUse(f"{path} must hold between 1 and {MAX_STYLE:,} characters of instruction.")
    _filled(text, {"length": "", "focus": "", "language": ""}, set())  # a wrong name shows at once
    return text


def _filled(template: str, values: dict[str, str], used: set[str]) -> str:
    """Put the values in; `used` collects the names that occurred."""
    try:
        found = string.Template(template)
        used.update(found.get_identifiers())
        return found.substitute(values)
    except KeyError as error:
        name = str(error.args[0])
        raise WrongUse(f"The template names ${name}; {suggest_name(name, values)}") from None
    except ValueError as error:
        raise WrongUse(
            f"The template is not valid ({error}); write $$ for a dollar sign."
        ) from None
