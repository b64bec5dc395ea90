"""What a reply must look like: a JSON schema or a grammar becomes a matcher of llguidance.

llguidance knows JSON Schema far better than a translation to llama.cpp's GBNF does, says which keyword it
can't do, and never ends the process. A matcher costs a look at one token as long as the model keeps to
the grammar by itself.
"""

from __future__ import annotations

import json
import re
from typing import Any

from rig.errors import RigError
from serve.engine.llama import LlamaContext

WHITESPACE = r"( |\n[ \t]{0,20})?"
"""Between two parts of JSON; without a limit a small model may write white space for ever."""
NESTING = 64
"""Levels of a schema; deeper ones are refused before they reach native code."""


class GrammarCompiler:
    """Makes matchers for one vocabulary, which is read when the first is asked for."""

    def __init__(self, llama: LlamaContext) -> None:
        self._llama = llama
        self._tokenizer: Any = None

    def make_matcher(self, asked: dict[str, Any] | None) -> Any:
        """A fresh matcher for {"schema": ...} or {"gbnf": ...}; None for None.

        With "thought": the tags of a reasoned reply (see `serve.api.protocol`); then the model may think
        first, and only its answer is bound. Raises RigError when the grammar can't be used.
        """
        if asked is None:
            return None
        import llguidance

        what = "JSON schema" if "schema" in asked else "grammar"
        try:
            grammar = self._grammar(asked)
        except (ValueError, RecursionError) as error:
            raise RigError(f"The {what} can't be read: {error}") from error
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split("(at ")[0].split())[:300]
            raise RigError(f"The {what} can't be used: {reason}")
        return matcher

    def _make_tokenizer(self) -> Any:
        """The vocabulary as llguidance wants it.

        Its own reader for llama.cpp takes what looks like a control token inside forced text for one.
        """
        from llguidance import LLTokenizer, TokenizerWrapper

        words = _Words(self._llama)
        return LLTokenizer(TokenizerWrapper(words), eos_token=words.ends)

    def _grammar(self, asked: dict[str, Any]) -> str:
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
        options: Any = {"whitespace_flexible": False, "whitespace_pattern": WHITESPACE}
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
        tokens = self._llama.tokenize(text, special=True, add_special=False)
        if len(tokens) == 1 and self._llama.is_control(tokens[0]):
            return f"<[{tokens[0]}]>"
        return None


class _Words:
    """A vocabulary in the form of llguidance's TokenizerWrapper."""

    def __init__(self, llama: LlamaContext) -> None:
        self._llama = llama
        numbers = range(llama.n_vocab)
        self.special_token_ids = [t for t in numbers if llama.is_control(t) or llama.is_end(t)]
        self.ends = llama.end_tokens
        self.eos_token_id = self.ends[0]
        self.bos_token_id = llama.bos if llama.bos >= 0 else None
        self.tokens = [llama.token_to_piece(t, special=True) for t in numbers]

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of plain text."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._llama.tokenize(text, special=False, add_special=False)


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
