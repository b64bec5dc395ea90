"""What was taken into the lessons and what was left out, counted for the person who asked for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class LessonNotes:
    """Counts by what they are of."""

    kept: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    """Whole sentences."""

    def add(self, what: str, count: int = 1, *, kept: bool = False) -> None:
        """Count `what` among what was kept, or left out."""
        if count:
            (self.kept if kept else self.left_out)[what] += count

    def to_sentences(self) -> list[str]:
        """For the person.

        >>> LessonNotes(Counter(), Counter({"articles with a blocked word": 2})).to_sentences()
        ['Left out: 2 articles with a blocked word.']
        """
        found = list(self.said)
        for words, counts in (("With", self.kept), ("Left out", self.left_out)):
            if counts:
                parts = ", ".join(f"{count} {what}" for what, count in counts.items())
                found.append(f"{words}: {parts}.")
        return found
