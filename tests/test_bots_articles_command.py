"""The command `rig summarise` from end to end: pytest tests/test_bots_articles_command.py"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bots.articles import chunks
from bots.language.sentences import split_sentences
from rig.server import running_servers
from support.articles_command import rig
from support.counting_server import CountingServer

SAMPLE = Path(__file__).parent.parent / "bots" / "articles" / "samples" / "lighthouse.html"


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer() as running:
        yield running


def test_a_saved_page_is_summarised_in_one_request(server: CountingServer) -> None:
    done = rig("summarise", str(SAMPLE), "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A lighthouse has one task, and for two thousand years")
    assert done.stdout.count(".") == 3
    assert [task.endswith("Write a summary of 3 sentences.") for task in server.tasks] == [True]
    assert "asks for a visit now and then from somebody with a cloth." in server.texts[0]
    assert "How the lighthouse learned to waste nothing · The rig engineers" in done.stderr


def test_json_is_one_object_with_everything(server: CountingServer) -> None:
    found = json.loads(rig("summarise", "sample", "--json", "--url", server.url).stdout)
    assert set(found) == {
        "summary", "text", "title", "author", "date", "site", "url", "kind", "tokens_in", "tokens_exact",
        "tokens_computed", "tokens_out", "chunks", "kept_chunks", "model", "cached", "unfounded",
        "notes", "timings",
    }  # fmt: skip
    assert found["title"] == "How the lighthouse learned to waste nothing"
    assert (found["author"], found["date"]) == ("The rig engineers", "2026-11-22")
    assert (found["chunks"], found["model"], found["cached"]) == (1, "fake", False)
    assert found["tokens_in"] > 900


def test_stdin_may_be_named_or_not(server: CountingServer) -> None:
    text = "One thing happened. Then another did. A third came. And a fourth."
    for arguments in (["-"], []):
        done = rig("summarise", *arguments, "--url", server.url, "--no-cache", stdin=text)
        assert done.stdout == "One thing happened. Then another did. A third came.\n", done.stderr


def test_extract_asks_no_model_and_drops_what_is_around_the_article(server: CountingServer) -> None:
    done = rig("summarise", "sample", "--extract", "--url", server.url)
    assert done.stdout.startswith("How the lighthouse learned to waste nothing\n\nA lighthouse")
    assert "Privacy" not in done.stdout
    assert "Why bridges hum" not in done.stdout
    assert not server.requests


def test_the_second_time_nothing_is_asked(server: CountingServer) -> None:
    first = rig("summarise", "sample", "--url", server.url)
    again = rig("summarise", "sample", "--url", server.url)
    assert first.stdout == again.stdout
    assert len(server.requests) == 1
    assert rig("summarise", "sample", "--url", server.url, "--no-cache").stdout == first.stdout
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("options", "task"),
    [
        (["--length", "short"], "Write a summary of 1 sentence."),
        (["--length", "5"], "Write a summary of 5 sentences."),
        (["--bullets"], "Write a summary as a list of 5 bullet points."),
        (["--bullets", "--length", "3"], "Write a summary as a list of 3 bullet points."),
        (["--focus", "the lens"], "Write a summary of 3 sentences. Focus on the lens."),
        (["--language", "de"], "Write a summary of 3 sentences. Write in German."),
        (
            ["--focus", "money.", "--language", "English"],
            "Write a summary of 3 sentences. Focus on money. Write in English.",
        ),
    ],
)
def test_options_become_the_words_the_model_was_taught(
    server: CountingServer, options: list[str], task: str
) -> None:
    text = "One thing happened. Another did. A third came. " * 9
    assert rig("summarise", "-", "--url", server.url, *options, stdin=text).returncode == 0
    assert server.tasks[0].endswith(" " + task)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such-file.txt"], 2, "There is no file"),
        (["example.org/page"], 2, "https://example.org/page"),
        (["."], 2, "is a folder"),
        (["sample", "--length", "huge"], 2, "short, medium, long or a number"),
        (["sample", "--language", "x\x1b[31m"], 2, "--language takes a name"),
        (["sample", "--style", "nowhere.txt"], 2, "There is no template"),
        (["sample", "--browser"], 2, "--browser renders addresses"),
        (["file:///etc/passwd"], 1, "Only http and https"),
        (["ftp://example.org/a"], 1, "Only http and https"),
        (["sample", "--url", "http://127.0.0.1:9", "--length", "2"], 1, "Nothing answers"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], code: int, words: str) -> None:
    done = rig("summarise", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_text_as_short_as_asked_is_given_back_without_a_model() -> None:
    done = rig("summarise", "-", "--json", stdin="Only one sentence here.")
    found = json.loads(done.stdout)
    assert (found["summary"], found["chunks"], found["model"]) == ("Only one sentence here.", 0, "")


def test_out_is_written_and_stdout_stays_empty(server: CountingServer, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "summary.txt"
    done = rig("summarise", "sample", "--url", server.url, "--out", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    assert out.read_text().startswith("A lighthouse has one task")


def test_a_new_export_of_the_same_run_is_another_model(tmp_path: Path) -> None:
    fingerprint = running_servers.model_fingerprint
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF one")
    first = fingerprint(str(model))
    assert fingerprint(str(model)) == first
    model.write_bytes(b"GGUF another")
    assert fingerprint(str(model)) != first
    assert fingerprint("org/model") == "org/model"


def test_an_adapter_of_a_server_is_another_model_than_its_base(tmp_path: Path) -> None:
    from bots.articles.pipeline import known_fingerprint

    (tmp_path / "m.gguf").write_bytes(b"GGUF one")
    path = running_servers.announce_server(str(tmp_path / "m.gguf"), url="http://127.0.0.1:9")
    try:
        base = known_fingerprint("http://127.0.0.1:9/v1", None)
        assert base == known_fingerprint(None, str(tmp_path / "m.gguf")) != ""
        assert known_fingerprint("http://127.0.0.1:9", "pirate") not in ("", base)
        assert known_fingerprint("http://127.0.0.1:10", None) == "", (
            "nobody here says what that serves"
        )
    finally:
        running_servers.withdraw_server(path)


def test_extract_gives_the_same_object_without_a_summary() -> None:
    found = json.loads(rig("summarise", "-", "--extract", "--json", stdin="Some words.").stdout)
    assert (found["summary"], found["text"], found["chunks"], found["model"]) == (
        None,
        "Some words.",
        0,
        "",
    )


def test_defaults_stand_in_rig_toml(server: CountingServer, elsewhere: Path) -> None:
    (elsewhere / "rig.toml").write_text(
        f'[model]\nurl = "{server.url}"\n[summarise]\nlength = "2"\nlanguage = "fr"\n'
    )
    done = rig("summarise", "-", stdin="One. Two went. Three came. Four left.")
    assert done.returncode == 0, done.stderr
    assert server.tasks[0].endswith("Write a summary of 2 sentences. Write in French.")


NASTY = {
    "blanks": " " * 2_000_000 + "x",
    "empty lines": "\t \n" * 300_000 + "x",
    "full stops": "." * 1_000_000,
    "quotes": '."' * 300_000,
    "digits": "9" * 1_000_000,
    "brackets": "<" * 1_000_000,
    "escapes": "\x1b]" * 300_000 + "x",
    "one word": "a" * 2_000_000,
    "marks": "“" * 300_000 + "x",
}
"""Texts that make a careless regular expression take hours."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_no_text_takes_for_ever(server: CountingServer, text: str) -> None:
    server.context = 10_000_000
    done = rig("summarise", "-", "--url", server.url, "--focus", "something", stdin=text)
    assert done.returncode in (0, 1), done.stderr
    pieces = chunks.split_text(text, 4000, lambda piece: len(piece) // 3)
    assert "".join(pieces) == text
    split_sentences(text)


@pytest.mark.parametrize(
    "charset", ["punycode", "idna", "utf-7", "rot13", "zip", "nonsense", "undefined"]
)
def test_a_page_can_not_choose_a_slow_or_strange_decoder(charset: str) -> None:
    from bots.documents.text import decode_text

    start = time.monotonic()
    assert "caf" in decode_text(b"caf\xe9 " + b"a" * 300_000, charset)
    assert time.monotonic() - start < 5
