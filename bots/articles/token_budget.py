"""How much fits: tokens by the served model's own tokenizer, and honest guesses where a server has none."""

from __future__ import annotations

from bots.articles.prompts import summary_messages
from bots.documents.article import Unreadable
from rig.errors import RigError
from rig.server.client import ModelClient, RequestRefused

GUESSED_CONTEXT = 4096
"""Tokens assumed where neither the server nor the reader says."""
MARGIN = 24
"""Tokens left free for joints: two texts side by side may take a token more than each alone."""
BYTES_PER_TOKEN = 3.0
"""A low guess for prose, so that a guessed size is rather too large."""


class TokenBudget:
    """Measures texts for one server."""

    def __init__(self, client: ModelClient, context: int | None = None) -> None:
        self._client = client
        self.exact = True
        """Whether the counts are the server's own."""
        self.notes: list[str] = []
        told = client.context_length
        self.context = context or told or GUESSED_CONTEXT
        if context and told and context > told:
            self.notes.append(f"The server has room for {told:,} tokens, not {context:,}.")
            self.context = told
        if not (context or told):
            self.notes.append(
                f"The server does not say how much it can read at once: {GUESSED_CONTEXT:,} tokens "
                "assumed (see --context)."
            )
        self._shared = client.model_info().get("owned_by") == "rig"
        self._bytes_per_token = BYTES_PER_TOKEN
        self._counted: dict[str, int] = {}
        """Exact counts: a long text is asked for when it is cut, and again when it was read."""

    def count_tokens(self, text: str) -> int:
        """Tokens of bare `text`."""
        if text in self._counted:
            return self._counted[text]
        if self.exact:
            try:
                found = self._client.count_text_tokens(text)
            except RequestRefused:
                found = None
            if found is not None:
                self._counted[text] = found
                return found
            self.exact = False
            self.notes.append("The server can't count tokens: sizes are guessed from the letters.")
        return int(len(text.encode("utf-8", "replace")) / self._bytes_per_token) + 1

    def framing_tokens(self, task: str) -> int:
        """Tokens of everything around the text: template, instruction, marks."""
        messages = summary_messages("", task)
        if self.exact:
            try:
                found = self._client.count_chat_tokens(messages)
            except RequestRefused:
                found = None
            if found is not None:
                return found
        return self.count_tokens("".join(message["content"] for message in messages)) + 32

    def text_tokens(self, task: str, answer: int) -> int:
        """Tokens of text that fit beside `task` and an answer of `answer` tokens."""
        left = self.context - self.framing_tokens(task) - answer - MARGIN
        if left < 64:
            raise RigError(
                f"A context of {self.context:,} tokens is too small for this task and an answer of "
                f"{answer:,} tokens: serve the model with a larger context, or ask for less."
            )
        return left

    def max_parallel(self, text: int, task: str, answer: int) -> int:
        """How many requests with `text` tokens each fit at once where the server shares one context.

        More of them would push each other out of memory and be read twice. Most other servers give
        each request a context of its own.
        """
        return (
            max(1, self.context // (text + self.framing_tokens(task) + answer))
            if self._shared
            else 64
        )

    def tighten_guess(self) -> None:
        """The server found a prompt too long: guess more tokens from now on."""
        if self.exact or self._bytes_per_token < 1:
            raise Unreadable(
                "size", "The server refuses a text that should fit its context: give --context."
            )
        self._bytes_per_token *= 0.75

    def was_cut(self, text: str, prompt_tokens: int) -> bool:
        """Whether a server that reported `prompt_tokens` can't have read all of `text`."""
        if not prompt_tokens:
            return False
        least = self.count_tokens(text) if self.exact else len(text.split())
        return prompt_tokens < 0.9 * least
