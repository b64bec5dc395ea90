"""Standard output: where a bot speaks until somebody enables it."""

from __future__ import annotations

import sys

from bots.outlets.base import LOST, Outlet, Post


class Screen(Outlet):
    """Prints a line for each post. Its limit is that of X, so that a dry run shows what X would take."""

    kind = "screen"
    away = False
    settle = 0.0

    limit = 280

    def measure_text(self, text: str) -> int:
        """Weighted as on X."""
        from bots.outlets.x_length import weighted_length

        return weighted_length(text)

    def send_post(self, post: Post) -> str:
        """Print it."""
        sys.stdout.write(f"{post.slot:%Y-%m-%d %H:%M} {post.bot}: {post.text}\n")
        sys.stdout.flush()
        return post.key

    def find_post(self, post: Post) -> str:
        """A line on a screen leaves no trace, and printing it again hurts nobody."""
        return LOST
