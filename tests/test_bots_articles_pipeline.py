"""One summary as command and digest get it: `pytest tests/test_bots_articles_pipeline.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bots.articles.cache import ArticleCache
from bots.articles.pipeline import SummaryResult, summarise
from bots.articles.request import SummaryRequest
from bots.documents.article import Article
from rig.server.client import ModelClient
from support.counting_server import CountingServer
from support.scripts import SENTENCES, transcript

BRIDGE = Article(
    "The bridge is 40 m long.", kind="html", title="A bridge", author="A. Mason", date="2026-11-22",
    site="example", url="https://a.example/1", notes=("One note.",),
)  # fmt: skip
LONG = Article(" ".join(f"Bridge {number} is long." for number in range(5)))
HEAD = (
    '"title": "A bridge", "author": "A. Mason", "date": "2026-11-22", "site": "example", '
    '"url": "https://a.example/1", "kind": "html", '
)
COUNTS: dict[str, Any] = {
    "tokens_in": 12, "tokens_out": 7, "chunks": 2, "model": "toy", "exact": False, "kept_notes": 1,
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ArticleCache]:
    kept = ArticleCache(tmp_path / "cache.sqlite3")
    yield kept
    kept.close()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (
            SummaryResult(
                BRIDGE, "It is “very” long: 41 m.", **COUNTS, notes=["Another note."],
                computed={"parts": 20, "whole": 5}, timings={"parts": 0.5, "summary": 0.8},
            ),
            '{"summary": "It is “very” long: 41 m.", ' + HEAD + '"tokens_in": 12, '
            '"tokens_exact": false, "tokens_computed": {"parts": 20, "whole": 5}, "tokens_out": 7, '
            '"chunks": 2, "kept_chunks": 1, "model": "toy", "cached": false, '
            '"unfounded": {"quotes": [], "figures": ["41 m"]}, '
            '"notes": ["One note.", "Another note."], "timings": {"parts": 0.5, "summary": 0.8}, '
            '"text": "The bridge is 40 m long."}',
        ),
        (
            SummaryResult(BRIDGE).with_seconds("text", 0.2004),  # --extract
            '{"summary": null, ' + HEAD + '"tokens_in": 0, '
            '"tokens_exact": true, "tokens_computed": {}, "tokens_out": 0, '
            '"chunks": 0, "kept_chunks": 0, "model": "", "cached": false, '
            '"unfounded": {"quotes": [], "figures": []}, '
            '"notes": ["One note."], "timings": {"text": 0.2}, '
            '"text": "The bridge is 40 m long."}',
        ),
    ],
    ids=["a summary", "only the text"],
)  # fmt: skip
def test_the_object_of_json_stays_byte_for_byte(result: SummaryResult, said: str) -> None:
    assert json.dumps(result.json(), ensure_ascii=False) == said


def test_a_kept_summary_is_the_same_and_computed_nothing(
    server: CountingServer, cache: ArticleCache
) -> None:
    with ModelClient(server.url) as client:
        first = summarise(LONG, SummaryRequest(), lambda: client, cache)
        again = summarise(LONG, SummaryRequest(), lambda: client, cache)
    differ = {name for name, value in first.json().items() if again.json()[name] != value}
    assert differ <= {"cached", "timings", "tokens_computed"}
    assert (first.cached, again.cached) == (False, True)
    assert list(first.timings) == ["whole", "summary"]
    assert (list(again.timings), again.computed) == (["summary"], {})


def test_a_text_as_short_as_was_asked_reaches_nobody(cache: ArticleCache) -> None:
    def refuse() -> ModelClient:
        raise AssertionError("nobody has to be asked")

    result = summarise(BRIDGE, SummaryRequest(), refuse, cache)
    assert (result.text, result.chunks, result.cached) == (BRIDGE.text, 0, False)
    assert result.remarks == ["One note.", "The text is as short as was asked."]


@pytest.mark.parametrize("language", ["hindi", "urdu", "thai", "transcript"])
def test_a_long_text_without_full_stops_is_summarised_not_handed_back(
    server: CountingServer, cache: ArticleCache, language: str
) -> None:
    text = transcript(900) if language == "transcript" else " ".join(SENTENCES[language] * 9)
    server.queue = ["SUMMARY BY THE MODEL."]
    with ModelClient(server.url) as client:
        found = summarise(Article(text), SummaryRequest(), lambda: client, cache)
    assert (found.text, found.notes) == ("SUMMARY BY THE MODEL.", [])
