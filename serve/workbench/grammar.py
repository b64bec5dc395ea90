"""What a reply must look like: a JSON schema or a grammar becomes a matcher of llguidance.

llguidance knows JSON Schema far better than a translation to llama.cpp's GBNF does, says which keyword it
can't do (that goes back as a note), and never ends the process. A matcher costs a look at one token as long
as the model keeps to the grammar by itself.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rig.errors import RigError
from serve.workbench.schema import prepare_schema
from serve.workbench.vocabulary import Vocabulary

WHITESPACE = r"( |\n[ \t]{0,20})?"
"""Between two parts of JSON; without a limit a small model may write white space for ever."""
NESTING = 64
"""Levels of a schema; deeper ones are refused before they reach native code."""


class LocalMatcher:
    """One reply's place in its grammar, in this process; `pool.RemoteMatcher` is the same in another."""

    def __init__(self, matcher: Any, notes: tuple[str, ...] = ()) -> None:
        self.notes = notes
        """What of the schema is not enforced."""
        self.native = matcher
        """llguidance's own."""

    def consume_token(self, token: int) -> None:
        """Go on by one token."""
        self.native.consume_token(token)

    def is_ready(self, seconds: float = 0.0) -> bool:
        """Whether it is known what may follow; waits that long."""
        return True

    def allows_token(self, token: int) -> bool:
        """Whether a token may follow."""
        return bool(self.native.validate_tokens([token]))

    def allowed_tokens(self, n_vocab: int) -> NDArray[np.bool_]:
        """Which tokens may follow: (n_vocab,)."""
        return unpack_mask(self.native.compute_bitmask(), n_vocab)

    @property
    def forced_tokens(self) -> list[int]:
        """The tokens that the grammar leaves no choice about."""
        return [int(token) for token in self.native.compute_ff_tokens()]

    @property
    def is_stopped(self) -> bool:
        """Whether the grammar allows nothing more."""
        return bool(self.native.is_stopped())

    @property
    def error(self) -> str:
        """What is wrong with the grammar, found while it ran; empty when nothing is."""
        return " ".join(str(self.native.get_error()).split("<state>")[0].split())[:300]

    def state(self) -> dict[str, Any]:
        """All of this in one piece, for another process."""
        if self.is_stopped or self.native.is_error():
            return {"stopped": self.is_stopped, "error": self.error, "forced": [], "mask": b""}
        forced = self.forced_tokens
        mask = self.native.compute_bitmask()
        return {"stopped": False, "error": self.error, "forced": forced, "mask": bytes(mask)}

    def close(self) -> None:
        """Nothing is held elsewhere."""


def unpack_mask(mask: bytes, n_vocab: int) -> NDArray[np.bool_]:
    """A bit for each token, padded to whole words: (bytes,) -> (8 * bytes,) -> (n_vocab,)."""
    bits = np.frombuffer(mask, np.uint8)
    return np.unpackbits(bits, bitorder="little")[:n_vocab].view(bool)


class GrammarCompiler:
    """Makes matchers for one vocabulary, which is read when the first is asked for, or before."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None

    def prepare(self) -> None:
        """Read the vocabulary."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()

    def make_matcher(self, asked: dict[str, Any]) -> LocalMatcher:
        """A fresh matcher for {"schema": ...} or {"gbnf": ...}.

        With "thought": the tags of a reasoned reply (see `serve.api.protocol`); then the model may think
        first, and only its answer is bound. Raises RigError when the grammar can't be used.
        """
        import llguidance

        what = "JSON schema" if "schema" in asked else "grammar"
        notes: list[str] = []
        try:
            grammar = self._grammar(asked, notes)
        except (ValueError, RecursionError) as error:
            raise RigError(f"The {what} can't be read: {error}") from error
        self.prepare()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split("(at ")[0].split())[:300]
            raise RigError(f"The {what} can't be used: {reason}")
        if "schema" in asked:
            checked = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
            notes += [f"{' '.join(said.split())[:200]} (not enforced)" for said in checked[1]]
        return LocalMatcher(matcher, tuple(notes))

    def _make_tokenizer(self) -> Any:
        """The vocabulary as llguidance wants it.

        Its own reader for llama.cpp takes what looks like a control token inside forced text for one.
        """
        from llguidance import LLTokenizer, TokenizerWrapper

        words = _Words(self._vocabulary)
        return LLTokenizer(TokenizerWrapper(words), eos_token=words.ends)

    def _grammar(self, asked: dict[str, Any], notes: list[str]) -> str:
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark

        if "gbnf" in asked:
            try:
                return str(LLMatcher.grammar_from_lark(any_to_lark(asked["gbnf"])))
            except Exception as error:  # the converter raises bare Exception for a wrong grammar
                raise ValueError(error) from error
        schema = asked["schema"]
        if _depth(schema) > NESTING:
            raise ValueError(f"it is nested deeper than {NESTING} levels")
        schema, ignored = prepare_schema(schema, strict=asked.get("strict", False))
        notes += ignored
        options: Any = {
            "whitespace_flexible": False,
            "whitespace_pattern": WHITESPACE,
            "lenient": True,  # what can't be enforced is told, and does not end the request
        }
        if "thought" not in asked:
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=options))
        bare = schema if isinstance(schema, dict) else {"anyOf": [schema]}
        return str(LLMatcher.grammar_from_lark(self._reasoned(asked["thought"], bare, options)))

    def _reasoned(self, tags: dict[str, Any], schema: dict[str, Any], options: Any) -> str:
        """A Lark grammar: perhaps a thought, perhaps the answer's tags, in them JSON."""
        opening, closing = self._tag(tags["open"]), self._tag(tags["close"])
        if opening is None or closing is None:
            start = "" if tags["opened"] else _slashed(tags["open"])
            thought = f"thought[lazy]: /{start}(?s:.*){_slashed(tags['close'])}/"
        else:
            start = "" if tags["opened"] else f"{opening} "
            thought = f"thought: {start}/(?s:.*)/ {closing}"
        answer = "space? answer"
        if tags["answer_open"] and tags["answer_close"]:
            around = f"{json.dumps(tags['answer_open'])} space? answer space? "
            answer += f" | space? {around}{json.dumps(tags['answer_close'])} space?"
        return "\n".join(
            (
                f"start: thought{'' if tags['opened'] else '?'} body",
                thought,
                f"body: {answer}",
                "space: /[ \\n]{1,4}/",
                f"answer: %json {json.dumps({**schema, 'x-guidance': options})}",
            )
        )

    def _tag(self, text: str) -> str | None:
        """Lark's name for a tag that is one token of its own; None for one that is spelt out."""
        tokens = self._vocabulary.tokenize(text, special=True, add_special=False)
        if len(tokens) == 1 and self._vocabulary.is_control(tokens[0]):
            return f"<[{tokens[0]}]>"
        return None


class _Words:
    """A vocabulary in the form of llguidance's TokenizerWrapper."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        numbers = range(vocabulary.n_vocab)
        self.special_token_ids = [
            t for t in numbers if vocabulary.is_control(t) or vocabulary.is_end(t)
        ]
        self.ends = vocabulary.end_tokens
        self.eos_token_id = self.ends[0]
        self.bos_token_id = vocabulary.bos if vocabulary.bos >= 0 else None
        self.tokens = vocabulary.all_pieces()

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of plain text."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._vocabulary.tokenize(text, special=False, add_special=False)


def _slashed(text: str) -> str:
    return re.escape(text).replace("/", "\\/")


def _depth(value: Any) -> int:
    """How deeply lists and dictionaries are nested, without recursion."""
    deepest, level = 0, [value]
    while level and deepest <= NESTING:
        deepest += 1
        inner = (v for v in level if isinstance(v, dict | list))
        level = [x for v in inner for x in (v.values() if isinstance(v, dict) else v)]
    return deepest
