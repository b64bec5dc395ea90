"""pytest tests/test_serve_workbench.py: foreign text is worked on where it can hurt nobody."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rig.errors import RigError
from serve.engine.sampling import SamplerParams
from serve.workbench import pool, remote, vocabulary
from serve.workbench.pool import Workbench
from serve.workbench.sizes import TooLong, check_size
from serve.workbench.vocabulary import TooManyTokens, Vocabulary
from support import serve_gguf
from support.serve_desk import GREEDY, TEXT, Desk

HELLO = [{"role": "user", "content": "the hat in on an the he"}]
SCHEMA = {
    "type": "object",
    "properties": {"post": {"type": "string", "maxLength": 9}, "n": {"enum": [1, 22, 333]}},
    "required": ["post", "n"],
    "additionalProperties": False,
}
HEAVY = {"schema": {"type": "string", "pattern": "^" + "(a|b)?" * 20_000 + "$"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("<think>", "</think>", "\n\n", "\n\n\n", "<td>")
    return serve_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf", words=words)


@pytest.fixture(scope="module")
def words(model: Path) -> Vocabulary:
    return Vocabulary.load(model)


@pytest.fixture
def own(model: Path) -> Iterator[Workbench]:
    """One that a test may hurt."""
    with contextlib.closing(Workbench(str(model))) as bench:
        yield bench


@pytest.fixture(scope="module")
def bench(model: Path) -> Iterator[Workbench]:
    with contextlib.closing(Workbench(str(model))) as bench:
        yield bench


def render(bench: Workbench, **more: Any) -> dict[str, Any]:
    ending = {"add_generation_prompt": True, "continue_final_message": False}
    job = {"do": "render", "messages": HELLO, "switches": {}, **ending, **more}
    return bench.ask(1, job, "The chat template")


# Tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("add_special", [True, False])
def test_a_long_text_has_the_tokens_that_llama_cpp_gives_it(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch, special: bool, add_special: bool
) -> None:
    monkeypatch.setattr(vocabulary, "SHORT_TEXT", 0)
    rng = random.Random(7)
    pieces = [*serve_gguf.CONTROL, "<think>", "</think>", "<td>", "\n", "\n\n", "\n\n\n\n", " "]
    pieces += ["the hat", "é", "👩‍👩‍👧", "<", "|>", "<|eot_", "<think", "\t ", "x" * 40, "0"]
    for _ in range(400):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(25)))
        theirs = words._tokenize_raw(text.encode(), special=special, add_special=add_special)
        assert words.tokenize(text, special=special, add_special=add_special) == theirs, text


def test_a_control_token_may_swallow_the_blanks_beside_it() -> None:
    special = vocabulary._SpecialWords.__new__(vocabulary._SpecialWords)
    special._number = {b"<l>": 1, b"<r>": 2}
    special._strips = {b"<l>": vocabulary.LSTRIP, b"<r>": vocabulary.RSTRIP}
    special._all = vocabulary._any_of([b"<l>", b"<r>"])
    found = list(special.cut(b"a \n<l> b<r> \tc <r> ", special=True))
    assert found == [(b"a", 1), (b" b", 2), (b"c ", 2), (b"", None)]


def test_words_that_overlap_are_left_to_llama_cpp(tmp_path: Path) -> None:
    odd = Vocabulary.load(serve_gguf.write(tmp_path / "odd.gguf", words=("ab<c", "<c>", "bc")))
    text = "ab<c> bc abc" * 1000
    theirs = odd._tokenize_raw(text.encode(), special=True, add_special=True)
    assert odd.tokenize(text, special=True, add_special=True) == theirs


def count_bytes(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], Callable[..., list[int]]]:
    """How many bytes llama.cpp is given each time from now on, and its way to read them."""
    asked: list[int] = []
    raw = words._tokenize_raw

    def counted(text: bytes, **more: bool) -> list[int]:
        asked.append(len(text))
        return raw(text, **more)

    monkeypatch.setattr(words, "_tokenize_raw", counted)
    return asked, raw


def test_each_piece_between_control_tokens_is_looked_at_once(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, raw = count_bytes(words, monkeypatch)
    text = "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>" * 40_000
    tokens = words.tokenize(text, special=True, add_special=True)
    assert len(tokens) == 1 + 40_000 * len(raw(text[:53].encode(), special=True))
    assert sum(asked) < 100, "the same few pieces, once each"


def test_a_text_that_is_far_too_long_is_not_read_to_its_end(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _ = count_bytes(words, monkeypatch)
    for text in ("a" * 4_000_000, "ab " * 1_000_000, "é\n" * 900_000, "<td>" * 900_000):
        with pytest.raises(TooManyTokens):
            words.tokenize(text, special=True, add_special=True, most=4096)
    assert sum(asked) < 4 * 200_000
    assert len(words.tokenize("a" * 9000, special=True, add_special=True, most=9001)) == 9001


def test_what_can_t_fit_is_refused_from_its_size() -> None:
    check_size(4096 * 28, 28, 4096)
    check_size(10**9, 0, 4096)  # a vocabulary that may drop bytes
    with pytest.raises(
        TooLong, match=r"114,689 bytes, which are at least 4,097 tokens, and the context"
    ):
        check_size(4096 * 28 + 1, 28, 4096)


# Templates ----------------------------------------------------------------------------------------

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
HOSTILE = {
    "loops in loops": LOOP + "{% endfor %}{% endfor %}{% endfor %}",
    "only for some words": "{% if messages[0].content %}" + LOOP + "{% endfor %}" * 3 + "{% endif %}",
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a long text by a filter": "{{ 'a' | center(10 ** 10) }}",
    "a huge number": "{{ 10 ** (10 ** 9) }}",
    "a list that doubles": "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}"
    "{% endfor %}",
    "a macro that calls itself": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a pattern of replacements": "{% set n = namespace(t='aa') %}{% for i in range(99) %}"
    "{% set n.t = n.t.replace('a', 'aaaa') %}{% endfor %}",
    "damaged": "{% for x in %}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_never_ends_is_cut_off(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "t.jinja").write_text(HOSTILE[name])
    with (
        contextlib.closing(Workbench(str(model), str(tmp_path / "t.jinja"))) as bench,
        pytest.raises(RigError, match=r"takes more|template failed|template is damaged"),
    ):
        render(bench)


def test_after_a_job_that_was_cut_off_the_next_one_is_done(bench: Workbench) -> None:
    for _ in range(3):
        with pytest.raises(RigError, match=r"The JSON schema takes more .*: make it smaller"):
            bench.open_grammar(1, HEAVY)
        assert "hat" in render(bench)["prompt"]


def test_a_short_job_is_done_beside_long_ones(bench: Workbench) -> None:
    done: list[str] = []

    def heavy(_: Workbench) -> None:
        with pytest.raises(RigError):
            bench.open_grammar(50, HEAVY)
        done.append("long")

    for id in range(50, 54):
        bench.run_later(id, heavy)

    def short(_: Workbench) -> None:
        render(bench)
        done.append("short")

    bench.run_later(60, short)
    wait_until(lambda: len(done) == 5)
    assert done[0] == "short"


def test_a_client_that_leaves_takes_its_job_along(own: Workbench) -> None:
    bench = own
    render(bench)
    said: list[str] = []

    def heavy(_: Workbench) -> None:
        try:
            bench.open_grammar(
                7, {"schema": {"type": "string", "pattern": "^" + "(a|b)?" * 15_000 + "$"}}
            )
        except RigError as error:
            said.append(error.message)

    bench.run_later(7, heavy)
    wait_until(lambda: 7 in bench._at_work)
    assert not bench.is_cancelled(7)
    bench.cancel_request(7)
    wait_until(lambda: bool(said))
    assert said == ["The client has left."]
    for id in range(8, 8 + 2 * pool.THREADS):  # those that had not begun never do
        bench.run_later(id, heavy)
    for id in range(8, 10_000):
        bench.cancel_request(id)
    wait_until(lambda: not bench._pending)
    assert not bench._cancelled, "nothing is kept of requests that are over"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_when_the_process_that_forks_is_killed_another_one_takes_its_place(own: Workbench) -> None:
    bench = own
    for _ in range(3):
        assert "hat" in render(bench)["prompt"]
        bench._spare.pop().kill()
        assert bench._process is not None
        bench._process.kill()


def test_where_nothing_can_be_forked_workers_are_started_one_by_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CAN_FORK", False)
    with contextlib.closing(Workbench(str(model))) as bench:
        assert "hat" in render(bench)["prompt"]
        matcher = bench.open_grammar(1, {"schema": {"const": "yes"}})
        assert matcher.allows_token(ord('"'))
        assert not matcher.allows_token(ord("y"))
        matcher.close()


# Grammars -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "asked",
    [
        {"schema": SCHEMA},
        {"gbnf": 'root ::= ("the " | "hat ")* "end"'},
        {"schema": {"const": [1, {"a": "é"}]}},
    ],
)
def test_a_grammar_in_another_process_allows_what_it_allows_here(
    model: Path, bench: Workbench, asked: dict[str, Any], seed: int
) -> None:
    sampling = SamplerParams(temperature=0.9, seed=seed)
    here, there = Desk(model), Desk(model)
    matcher = here.grammars.make_matcher(asked)
    ours = here.ask(TEXT, max_tokens=60, sampling=sampling, matcher=matcher)
    theirs = there.ask(TEXT, max_tokens=60, sampling=sampling, matcher=bench.open_grammar(1, asked))
    assert (theirs.tokens, theirs.finish) == (ours.tokens, ours.finish)
    assert len(bench._spare) <= pool.SPARE


def test_a_reply_goes_on_in_its_grammar_after_a_crash(model: Path, bench: Workbench) -> None:
    asked = {"schema": SCHEMA}
    whole = Desk(model).ask(TEXT, max_tokens=60, matcher=bench.open_grammar(1, asked))
    for cut in (1, 5, len(whole.tokens) - 2):
        again = Desk(model).ask(
            TEXT, max_tokens=60, matcher=bench.open_grammar(1, asked), already=whole.tokens[:cut]
        )
        assert whole.tokens[:cut] + again.tokens == whole.tokens


class SlowMatcher:
    """A grammar that allows everything, and needs long after some of its tokens."""

    forced_tokens: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, slow_at: int, error: str = "") -> None:
        self._tokens = 0
        self._slow_at = slow_at
        self._say = error
        self.release = False
        self.closed = False

    def consume_token(self, token: int) -> None:
        self._tokens += 1

    def is_ready(self, seconds: float = 0.0) -> bool:
        return self._tokens != self._slow_at or self.release

    def allows_token(self, token: int) -> bool:
        assert self.is_ready()
        return True

    def allowed_tokens(self, n_vocab: int) -> Any:
        return np.ones(n_vocab, np.bool_)

    @property
    def is_stopped(self) -> bool:
        assert self.is_ready()
        return False

    @property
    def error(self) -> str:
        assert self.is_ready()
        return self._say if self._tokens >= self._slow_at else ""

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("slow_at", [1, 2, 9, 20])
def test_nobody_waits_for_another_s_grammar(model: Path, slow_at: int) -> None:
    alone = Desk(model).ask(TEXT, max_tokens=20)
    desk = Desk(model)
    matcher: Any = SlowMatcher(slow_at)
    slow = desk.submit(TEXT, max_tokens=20, matcher=matcher)
    others = [desk.submit(TEXT + str(i), max_tokens=30, sampling=GREEDY) for i in range(2)]
    desk.run(120)
    assert all(desk.said[other].finish for other in others)
    assert (slow not in desk.said) or desk.said[slow].finish is None or slow_at == 20
    matcher.release = True
    desk.run()
    assert desk.said[slow].tokens == alone.tokens
    assert matcher.closed


def test_a_grammar_that_breaks_in_the_middle_ends_its_reply(model: Path) -> None:
    desk = Desk(model)
    matcher: Any = SlowMatcher(5, "A step in the grammar takes too long.")
    slow = desk.submit(TEXT, max_tokens=20, matcher=matcher)
    other = desk.submit(TEXT, max_tokens=20)
    desk.run(40)
    matcher.release = True
    desk.run()
    assert (desk.said[slow].finish, desk.said[other].finish) == ("refused", "length")
    assert "takes too long" in desk.said[slow].error


def test_a_step_that_takes_too_long_is_cut_off(
    own: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "STEP_SECONDS", 0.02)
    matcher = own.open_grammar(1, {"schema": SCHEMA})
    os.kill(matcher._worker._pid, signal.SIGSTOP)
    while matcher.is_ready():  # forced tokens need no answer
        matcher.consume_token((matcher.forced_tokens or [ord("{")])[0])
    wait_until(matcher.is_ready)
    assert matcher.error == "A step in the grammar takes too long: make it simpler."
    matcher.close()
    assert not own._spare


def test_a_worker_that_ends_in_the_middle_ends_its_reply(own: Workbench) -> None:
    matcher = own.open_grammar(1, {"schema": SCHEMA})
    os.kill(matcher._worker._pid, signal.SIGKILL)
    while not matcher.error:
        matcher.consume_token((matcher.forced_tokens or [ord("{")])[0])
        wait_until(matcher.is_ready)
    assert "A step in the grammar takes" in matcher.error
    matcher.close()
