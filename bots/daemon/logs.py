"""What the daemon says on stderr: one line an event, in UTC, without secrets; journald gets levels."""

from __future__ import annotations

import logging
import os
import sys
import time

from bots.redact import redact_secrets

CHATTY = (
    "apscheduler", "httpx", "httpcore", "tweepy", "oauthlib", "requests_oauthlib", "urllib3", "atproto",
    "mastodon", "filelock",
)  # fmt: skip
"""Libraries that log requests with their headers and addresses when they are allowed to."""
LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class LogFormatter(logging.Formatter):
    """One line for each event, an exception's traceback folded into it; secrets are taken out last of all."""

    def __init__(self, journal: bool) -> None:
        super().__init__(
            "%(message)s" if journal else "%(asctime)s %(levelname).1s %(message)s",
            "%Y-%m-%dT%H:%M:%SZ",
        )
        self._journal = journal
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = redact_secrets(super().format(record)).replace("\n", " ⏎ ")
        return f"<{LEVELS.get(record.levelno, 6)}>{line}" if self._journal else line


def configure_logging(level: int = logging.INFO) -> None:
    """Log to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(journal="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)  # "still running" is no news
    logging.raiseExceptions = False  # a full log must not stop the work
