"""What can't fit is refused from its size alone."""

from __future__ import annotations

from rig.errors import RigError


class TooLong(RigError):
    """A prompt that the context can't hold."""


def check_size(size: int, longest: int, n_ctx: int) -> None:
    """Refuse a text that can't fit however it is cut; `longest` is the bytes of the longest token, or 0."""
    if longest and size > longest * n_ctx:
        raise TooLong(
            f"The prompt has {size:,} bytes, which are at least {-(-size // longest):,} tokens, and the "
            f"context holds {n_ctx}: shorten the prompt, or start the server with a larger --ctx."
        )
