"""Takes documents apart in a child process with a time and a memory limit, so that none can hurt this one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from bots.documents.article import Article, Unreadable

SECONDS = 60.0
SECONDS_PER_MB = 5.0
"""How long a document may take: a page takes one tenth of a second, a thick PDF a minute."""
MEMORY = 2_000_000_000
"""Bytes of address space."""


def extract_article(
    content: bytes,
    kind: str,
    *,
    url: str = "",
    name: str = "",
    charset: str = "",
    seconds: float = SECONDS,
) -> Article:
    """Return the text of `content`, a document of `kind` (see `bots.documents.sniff`)."""
    if kind in ("text", "markdown"):
        from bots.documents import worker

        return worker.read_document(content, kind, url=url, name=name, charset=charset)
    return Article.from_dict(
        run_worker(content, kind, url=url, name=name, charset=charset, seconds=seconds)
    )


def run_worker(
    content: bytes,
    kind: str,
    *,
    url: str = "",
    name: str = "",
    charset: str = "",
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """What the child makes of `content`; the reason it gives instead is raised as `Unreadable`."""
    asked = {"kind": kind, "url": url, "name": name, "charset": charset, "memory": MEMORY}
    what = name or "The input"
    seconds += SECONDS_PER_MB * len(content) / 1e6
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "bots.documents.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            answer, _ = child.communicate(json.dumps(asked).encode() + b"\n" + content, seconds)
        except subprocess.TimeoutExpired:
            raise Unreadable("time", f"{what} takes longer than {seconds:.0f} s to read.") from None
        finally:
            child.kill()
    if not answer:
        raise Unreadable(
            "damaged", f"{what} can't be read: its reader gave up (exit code {child.returncode})."
        )
    found = json.loads(answer)
    if "reason" in found:
        raise Unreadable(found["reason"], found["message"])
    return dict(found)
