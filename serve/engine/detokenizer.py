"""Tokens become text as they come: whole characters only, and nothing of a stop string gets out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Collects the bytes of one reply; what may be the beginning of a stop string is kept back.

    >>> text = Detokenizer(["END"])
    >>> [text.feed_bytes(piece) for piece in (b"caf\\xc3", b"\\xa9 E", b"N", b"Z EN", b"D and more")]
    ['caf', 'é ', '', 'ENZ ', '']
    >>> text.stopped
    True
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""
        self.stopped = False

    def feed_bytes(self, piece: bytes) -> str:
        """Return the text that `piece` makes certain."""
        if self.stopped:
            return ""
        fresh = self._decoder.decode(piece)
        return self._release(fresh) if self._stops else fresh

    def flush_text(self) -> str:
        """Return what was kept back; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        said = self._release(self._decoder.decode(b"", True))
        said, self._kept = said + self._kept, ""
        return said

    def _release(self, fresh: str) -> str:
        self._kept += fresh
        found = [at for stop in self._stops if (at := self._kept.find(stop)) >= 0]
        if found:
            said, self._kept = self._kept[: min(found)], ""
            self.stopped = True
            return said
        keep = max((_overlap(self._kept, stop) for stop in self._stops), default=0)
        cut = len(self._kept) - keep
        said, self._kept = self._kept[:cut], self._kept[cut:]
        return said


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
