"""`rig summarise` with the toy model behind a real `rig serve`, and the server's own counters.

pytest tests/test_bots_articles_real.py
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bots.articles import chunks
from bots.articles.cache import ArticleCache
from bots.articles.pipeline import summarise
from bots.articles.progress import SummaryListener
from bots.articles.prompts import summary_messages
from bots.articles.request import NOTES, SummaryRequest
from bots.articles.token_budget import MARGIN, TokenBudget
from bots.documents.article import Article
from bots.documents.sanitise import clean_paragraphs, defuse_marks
from rig.server.client import ModelClient
from support.articles_command import rig, rig_apart
from support.articles_documents import prose

JOINT = 16
"""Tokens around a part that are computed each time: the marks after it, a border that tokenizes otherwise."""


@contextmanager
def serving(model: Path, context: int) -> Iterator[str]:
    """`rig serve` with nothing kept from before."""
    command = ["serve", str(model), "--port", "0", "--ctx", str(context), "--threads", "2"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "rig", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"RIG_HOME": str(model.parent / f"articles{context}")},
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(r"http://[\d.]+:\d+", line):
            break
    else:
        pytest.fail(f"rig serve did not start: {said}")
    try:
        with ModelClient(found[0]) as client:
            while not client.is_ready():
                time.sleep(0.05)
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def url(toy_gguf: Path) -> Iterator[str]:
    """One server with the full context for all tests that do not count."""
    with serving(toy_gguf, 4096) as address:
        yield address


def counted(url: str, name: str) -> int:
    """One of the server's counters."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        told = answer.read().decode()
    found = re.search(rf"^rig_serve_{name}_total ([\d.e+]+)$", told, re.MULTILINE)
    assert found, told
    return int(float(found[1]))


class Parts(SummaryListener):
    """Reads the counters when the last part has been read, before the notes are."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.computed = 0
        self.chunks = 0

    def on_part_read(self, done: int, chunks: int) -> None:
        """Only the first time: notes on notes would be more."""
        if done == chunks and not self.computed:
            self.computed, self.chunks = counted(self.url, "prompt_tokens"), chunks


def check_instruction_is_computed_once(url: str, text: str) -> int:
    """Tokens computed are those of the text, one instruction, and a joint for each part."""
    seen = Parts(url)
    with ModelClient(url) as client:
        token_budget = TokenBudget(client)
        before, size, instruction = (
            counted(url, "prompt_tokens"),
            token_budget.count_tokens(text),
            token_budget.framing_tokens(NOTES),
        )
        found = summarise(
            Article(text), SummaryRequest(), lambda: client, ArticleCache(None), listener=seen
        )
    assert found.tokens_in == size
    assert found.chunks == seen.chunks > 3
    computed = seen.computed - before
    assert size <= computed <= size + instruction + JOINT * seen.chunks
    return seen.chunks


def test_the_sample_becomes_a_summary(url: str) -> None:
    found = json.loads(rig("summarise", "sample", "--json", "--url", url).stdout)
    assert found["summary"].startswith(
        "A lighthouse has one task, and for two thousand years it did"
    )
    assert (found["chunks"], found["tokens_exact"]) == (1, True)
    points = rig("summarise", "sample", "--bullets", "--length", "3", "--url", url).stdout
    assert [line[:2] for line in points.splitlines()] == ["- "] * 3


def test_the_instruction_is_computed_once_for_all_parts(toy_gguf: Path) -> None:
    with serving(toy_gguf, 1024) as url:
        check_instruction_is_computed_once(url, defuse_marks(clean_paragraphs(prose(170))))


def test_a_model_is_started_when_none_runs(toy_gguf: Path, own_home: Path) -> None:
    done = rig_apart(
        "summarise", "sample", "--model", str(toy_gguf), "--length", "short", seconds=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A lighthouse has one task")
    again = rig_apart(
        "summarise", "sample", "--model", str(toy_gguf), "--length", "short", "--json"
    )
    assert json.loads(again.stdout)["cached"]
    (announced,) = [json.loads(p.read_text()) for p in (own_home / "state/servers").glob("*.json")]
    os.kill(announced["pid"], 15)


@pytest.mark.slow
def test_twelve_thousand_words_in_a_context_of_4096(toy_gguf: Path, shared: Path) -> None:
    """Every part is read: the requests are checked against the text. Figures: benchmarks/summarise.py."""
    book = (shared / "data/articles/long/the_time_machine.txt").read_text("utf-8-sig")
    book = book[book.index("The Time Traveller (for so") :]
    text = defuse_marks(clean_paragraphs(book[: list(re.finditer(r"\S+", book))[11_999].end()]))
    assert len(text.split()) == 12_000
    with serving(toy_gguf, 4096) as url:
        parts = check_instruction_is_computed_once(url, text)
        with ModelClient(url) as client:
            token_budget = TokenBudget(client)
            cut = chunks.split_text(
                text, token_budget.text_tokens(NOTES, 540), token_budget.count_tokens
            )
            assert "".join(cut) == text
            assert len(cut) == parts
            sizes = [client.count_chat_tokens(summary_messages(part, NOTES)) or 0 for part in cut]
            assert max(sizes) + 540 <= 4096 - MARGIN // 2


def test_a_real_saved_page_is_extracted_and_summarised(
    url: str, shared: Path, tmp_path: Path
) -> None:
    saved = sorted((shared / "data/articles/html").glob("*.html.gz"))[0]
    file = tmp_path / "page.html"
    file.write_bytes(gzip.decompress(saved.read_bytes()))
    found = json.loads(rig("summarise", str(file), "--json", "--url", url).stdout)
    assert found["title"]
    assert found["summary"]
