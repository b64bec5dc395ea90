"""The words of one model: text becomes tokens and tokens become text. Knows no context and no weights.

llama.cpp looks for every control token in every piece between two of them, to the end of the text: ten
thousand short messages take it six seconds. Long texts are cut into such pieces here, in one pass, and each
piece goes to llama.cpp alone, which reads pieces independently anyway; the tokens are the same.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import llama_cpp as lib

from rig.errors import RigError

PIECE = 4096
"""Bytes of the longest token."""
SHORT_TEXT = 4096
"""Bytes of a text that llama.cpp cuts by itself in no time."""
STEP = 1 << 16
"""Bytes of plain text after which a text that is far too long is given up."""
BYTES_KEPT = (1, 2)
"""llama.cpp's kinds of vocabulary whose tokens keep every byte of a text: SPM and BPE."""
UNKNOWN, CONTROL, USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
LSTRIP, RSTRIP = 1 << 8, 1 << 9
BLANKS = b" \t\n\v\f\r"


_QUIET = lib.llama_log_callback(lambda level, text, data: None)


class TooManyTokens(RigError):
    """The text has more tokens than were allowed; it was not read to its end."""


class Vocabulary:
    """The words of a loaded llama.cpp model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocab = lib.llama_model_get_vocab(model)
        self.bos = int(lib.llama_vocab_bos(self.vocab))
        self.eos = int(lib.llama_vocab_eos(self.vocab))
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        self.end_tokens = [t for t in range(self.n_vocab) if self.is_end(t)]
        """Tokens that end a reply."""
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(PIECE)
        self._special: _SpecialWords | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """The words of a GGUF file, without its weights."""
        lib.llama_log_set(_QUIET, ctypes.c_void_p(0))
        params = lib.llama_model_default_params()
        params.vocab_only = True
        params.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise RigError(f"llama.cpp can't read the vocabulary of {path}.")
        return cls(model)

    def tokenize(
        self, text: str, *, special: bool, add_special: bool, most: int | None = None
    ) -> list[int]:
        """Tokens of `text`; `special` reads control tokens in it, `add_special` puts BOS before it.

        Raises TooManyTokens as soon as there are certainly more than `most`.
        """
        raw = text.encode("utf-8", "replace")
        if len(raw) <= SHORT_TEXT:
            return self._tokenize_raw(raw, special=special, add_special=add_special)
        words = self.special_words()
        if not words.can_cut:
            return self._tokenize_raw(raw, special=special, add_special=add_special)
        tokens = self._tokenize_raw(b"", special=special, add_special=add_special)
        ends = (
            tokens[1:] if tokens and tokens[0] == self.bos else []
        )  # some models add one at the end
        tokens = tokens[: len(tokens) - len(ends)]
        known: dict[bytes, list[int]] = {}
        for piece, word in words.cut(raw, special=special):
            if piece:
                found = known.get(piece)
                if found is None:
                    found = self._tokenize_piece(piece, most and most - len(tokens))
                    if len(piece) < 64:
                        known[piece] = found
                tokens += found
            if word is not None:
                tokens.append(word)
            if most is not None and len(tokens) > most:
                raise TooManyTokens(f"more than {most} tokens")
        return tokens + ends

    def special_words(self) -> _SpecialWords:
        """The words that a text is cut at, looked up when they are first needed, or before."""
        if self._special is None:
            self._special = _SpecialWords(self)
        return self._special

    def _tokenize_piece(self, raw: bytes, most: int | None) -> list[int]:
        if most is not None and len(raw) > 4 * STEP:
            # cut anywhere, a text has about as many tokens as whole: enough to say that it is far too long
            rough = 0
            for at in range(0, len(raw), STEP):
                rough += len(self._tokenize_raw(raw[at : at + STEP]))
                if rough > 2 * most + 1024:
                    raise TooManyTokens(f"more than {most} tokens")
        return self._tokenize_raw(raw)

    def _tokenize_raw(
        self, raw: bytes, *, special: bool = False, add_special: bool = False
    ) -> list[int]:
        room = len(raw) + 8
        tokens = (ctypes.c_int32 * room)()
        n = lib.llama_tokenize(self.vocab, raw, len(raw), tokens, room, add_special, special)
        if n < 0:
            tokens = (ctypes.c_int32 * -n)()
            n = lib.llama_tokenize(self.vocab, raw, len(raw), tokens, -n, add_special, special)
        return list(tokens[:n])

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens are empty unless `special`."""
        if special:  # may be asked from two threads
            buffer = ctypes.create_string_buffer(PIECE)
            n = lib.llama_token_to_piece(self.vocab, token, buffer, PIECE, 0, True)
            return buffer.raw[: max(n, 0)]
        found = self._pieces.get(token)
        if found is None:
            n = lib.llama_token_to_piece(self.vocab, token, self._buffer, PIECE, 0, False)
            found = self._pieces[token] = self._buffer.raw[: max(n, 0)]
        return found

    def all_pieces(self) -> list[bytes]:
        """The bytes of every token, in the order of their numbers."""
        buffer = ctypes.create_string_buffer(PIECE)
        pieces = []
        for token in range(self.n_vocab):
            n = lib.llama_token_to_piece(self.vocab, token, buffer, PIECE, 0, True)
            pieces.append(ctypes.string_at(buffer, max(n, 0)))
        return pieces

    def is_control(self, token: int) -> bool:
        """Whether the token is no text."""
        return bool(lib.llama_vocab_is_control(self.vocab, token))

    def is_end(self, token: int) -> bool:
        """Whether the token ends a reply."""
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    @property
    def keeps_bytes(self) -> bool:
        """Whether every byte of a text is in one of its tokens."""
        return int(lib.llama_vocab_type(self.vocab)) in BYTES_KEPT

    @property
    def chat_template(self) -> str:
        """The template that the file brings; empty when it brings none."""
        found = lib.llama_model_chat_template(self.model, None)
        return found.decode("utf-8", "replace") if found else ""

    def longest_token(self) -> int:
        """Bytes of the longest token; 0 where a text may have bytes that are in no token."""
        return max(map(len, self.all_pieces()), default=0) if self.keeps_bytes else 0


class _SpecialWords:
    """The words that llama.cpp cuts a text at: control tokens where they are meant, the user's own always."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._number: dict[bytes, int] = {}
        self._strips: dict[bytes, int] = {}
        control: list[bytes] = []
        own: list[bytes] = []
        vocab = vocabulary.vocab
        for token in range(vocabulary.n_vocab):
            attributes = int(lib.llama_vocab_get_attr(vocab, token))
            if not attributes & (UNKNOWN | CONTROL | USER_DEFINED):
                continue
            word = lib.llama_vocab_get_text(vocab, token)
            if not word:
                continue
            self._number.setdefault(word, token)
            self._strips[word] = attributes & (LSTRIP | RSTRIP)
            (own if attributes & USER_DEFINED else control).append(word)
        self._all = _any_of([*control, *own])
        self._own = _any_of(own)
        self.can_cut = not _overlap_each_other([*control, *own])
        """llama.cpp looks for the longest word first, wherever it stands: where words may overlap, a pass
        from left to right finds others."""

    def cut(self, raw: bytes, *, special: bool) -> Iterator[tuple[bytes, int | None]]:
        """Plain text and the word that follows it; None at the end."""
        pattern = self._all if special else self._own
        begin, strip_left = 0, False
        for found in pattern.finditer(raw) if pattern else ():
            word = found.group()
            strips = self._strips[word]
            piece = raw[begin : found.start()]
            if strip_left:
                piece = piece.lstrip(BLANKS)
            if strips & LSTRIP:
                piece = piece.rstrip(BLANKS)
            yield piece, self._number[word]
            begin, strip_left = found.end(), bool(strips & RSTRIP)
        rest = raw[begin:]
        yield rest.lstrip(BLANKS) if strip_left else rest, None


def _overlap_each_other(words: list[bytes]) -> bool:
    """Whether an end of one word may be the beginning of another; runs of one letter do no harm.

    >>> _overlap_each_other([b"<a>", b"</a>"]), _overlap_each_other([b"aab", b"bc"])
    (False, True)
    """
    words = [word for word in set(words) if len(set(word)) > 1]
    starts = {word[:n] for word in words for n in range(1, len(word))}
    return any(word[n:] in starts for word in words for n in range(1, len(word)))


def _any_of(words: list[bytes]) -> re.Pattern[bytes] | None:
    """A pattern for the longest of many words at a place; what they have in common is looked at once."""
    if not words:
        return None
    tree: dict[int, Any] = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[-1] = {}
    return re.compile(_pattern_of(tree), re.DOTALL)


def _pattern_of(tree: dict[int, Any]) -> bytes:
    """The pattern of a tree of letters; -1 ends a word.

    >>> _pattern_of({97: {-1: {}, 98: {-1: {}}}})
    b'a(?:b)?'
    """
    prefix = b""
    while len(tree) == 1 and -1 not in tree:
        letter, tree = next(iter(tree.items()))
        prefix += re.escape(bytes([letter]))
    branches = [
        re.escape(bytes([letter])) + _pattern_of(inner)
        for letter, inner in tree.items()
        if letter != -1
    ]
    if not branches:
        return prefix
    return prefix + b"(?:" + b"|".join(branches) + b")" + (b"?" if -1 in tree else b"")
