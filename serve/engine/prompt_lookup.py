"""Prompt lookup: where a reply copies its input, the input says how it goes on.

The last three tokens are looked up in all that came before; what followed them there is a guess that the
model checks in one decode. Guesses are tried only as long as they pay on this box (`cost_model`); while
they don't, they are still compared with what is written, which costs nothing, so that a passage that
copies switches them on again.
"""

from __future__ import annotations

LONGEST = 8
"""Tokens guessed at once."""
RUN = 3
"""Tokens that must agree before a guess is made."""
LEARN = 0.1


class PromptLookup:
    """Guesses how `tokens` goes on; its caller appends, and calls `index_last_token` each time.

    >>> drafter = PromptLookup([1, 2, 3, 4, 5, 1, 2])
    >>> drafter._tokens.append(3); drafter.index_last_token()
    >>> drafter.propose_tokens(2)
    [4, 5]
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._follows: dict[tuple[int, ...], int] = {}
        """Where what follows a run of tokens stands, for the last time that the run was seen."""
        self._indexed = RUN
        self._at: int | None = None
        self.trust = 0.5
        """How often a guessed token is right, as far as is known."""

    def index_last_token(self) -> None:
        """A token was appended: was it what would have been guessed, and what is to be guessed now?"""
        if self._at is not None:
            self._learn(self._tokens[self._at] == self._tokens[-1])
        tokens, follows = self._tokens, self._follows
        for end in range(self._indexed, len(tokens)):
            follows[tuple(tokens[end - RUN : end])] = end
        self._indexed = max(RUN, len(tokens))
        self._at = follows.get(tuple(tokens[-RUN:]))

    def propose_tokens(self, limit: int) -> list[int]:
        """Up to `limit` tokens that may come next; none where the last ones are new."""
        if self._at is None or limit <= 0:
            return []
        return self._tokens[self._at : self._at + limit]

    def _learn(self, right: bool) -> None:
        self.trust += LEARN * (right - self.trust)
