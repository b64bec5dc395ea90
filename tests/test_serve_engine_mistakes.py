"""pytest tests/test_serve_engine_mistakes.py: a mistake in one reply ends that reply, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.engine import sequence
from serve.engine.cost_model import CostModel
from serve.engine.detokenizer import Detokenizer
from serve.engine.kv_cache import KVCache
from serve.engine.kv_slots import SlotPool
from serve.engine.llama import LlamaContext
from serve.engine.prompt_lookup import PromptLookup
from serve.engine.sampling import Sampler, SamplerParams
from serve.engine.scheduler import Scheduler
from serve.engine.sequence import Output
from serve.hardware.threads import ThreadTuner
from support import serve_gguf
from support.serve_desk import TEXT, Desk, no_end
from support.serve_server import Server

CALLED = [
    (Sampler, "sample_token"),
    (Sampler, "forced_tokens"),
    (Sampler, "close"),
    (Detokenizer, "feed_bytes"),
    (Detokenizer, "flush_text"),
    (PromptLookup, "index_last_token"),
    (PromptLookup, "propose_tokens"),
    (sequence.Sequence, "sample_next_token"),
    (sequence.Sequence, "record_draft"),
    (sequence.Sequence, "draft_chances"),
    (sequence.Sequence, "collect_timings"),
    (sequence, "top_logprobs"),
    (KVCache, "has_room_for"),
    (KVCache, "cached_length"),
    (KVCache, "claim_slot"),
    (KVCache, "release_slot"),
    (KVCache, "note_prompt"),
    (KVCache, "save_one_prefix"),
    (KVCache, "evict_oldest_slot"),
    (SlotPool, "take_slot"),
    (SlotPool, "mark_used"),
    (SlotPool, "longest_prefix"),
    (CostModel, "prefill_chunk_size"),
    (CostModel, "draft_lengths"),
    (CostModel, "expected_seconds"),
    (CostModel, "record_step"),
    (ThreadTuner, "record_step"),
    (LlamaContext, "decode"),
    (LlamaContext, "row_logits"),
    (LlamaContext, "token_to_piece"),
    (LlamaContext, "is_end"),
    (LlamaContext, "truncate_cells"),
    (LlamaContext, "share_cells"),
    (LlamaContext, "use_adapters"),
    (Scheduler, "_make_room"),
    (Scheduler, "_better_to_wait"),
    (Scheduler, "_pause"),
    (Scheduler, "_drop"),
]
"""Whatever the engine's loop calls for a request, or for all."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    serve_gguf.write(folder / "tiny.gguf")
    serve_gguf.write_lora(folder / "style.gguf")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Output:
    return Desk(folder / "tiny.gguf").ask(TEXT, max_tokens=20)


class Trap:
    """Lets a function raise at one of its calls."""

    def __init__(self, function: Callable[..., Any], at: int) -> None:
        self._function = function
        self._at = at
        self.calls = 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self._at:
            raise ZeroDivisionError("a mistake")
        return self._function(*given, **named)


def busy_desk(folder: Path) -> Iterator[tuple[Desk, list[int]]]:
    """An engine with something of everything on its way, and with fewer cells than that takes."""
    desk = Desk(folder / "tiny.gguf", ctx=256, adapters=[folder / "style.gguf"])
    desk.ask(TEXT + "before", max_tokens=4)
    warm = SamplerParams(temperature=0.7, seed=1)
    matcher = desk.grammars.make_matcher({"gbnf": 'root ::= "the hat " root | "end"'})
    jobs = [
        desk.submit(TEXT + "before", max_tokens=20, sampling=warm, logprobs=2),
        desk.submit(TEXT, max_tokens=180, sampling=no_end(desk)),
        desk.submit("on" + TEXT, max_tokens=180, sampling=no_end(desk)),
        desk.submit(TEXT + "x", max_tokens=20, adapters=((0, 1.0),)),
        desk.submit("he", max_tokens=20, matcher=matcher, stops=["END"]),
    ]
    yield desk, jobs
    desk.engine.pause_request(jobs[3])
    desk.run(3)
    desk.engine.pause_request(jobs[3], False)
    dropped = desk.submit(TEXT * 3, max_tokens=100)
    desk.run(2)
    desk.engine.cancel_request(dropped)
    desk.run()


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize(("where", "name"), CALLED)
def test_an_exception_anywhere_ends_one_job_and_not_the_engine(
    folder: Path,
    expected: Output,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: Any,
    name: str,
    at: int,
) -> None:
    run = busy_desk(folder)
    desk, jobs = next(run)
    trap = Trap(getattr(where, name), at)
    monkeypatch.setattr(where, name, lambda *given, **named: trap(*given, **named))
    list(run)
    monkeypatch.undo()
    desk.engine.pause_request(jobs[3], False)  # where the pausing itself went wrong
    desk.run()
    capsys.readouterr()
    assert trap.calls, "nobody calls it, so nothing was tried"
    assert {desk.said[job].finish for job in jobs} <= {"stop", "length", "error"}
    for job in jobs:
        said = desk.said[job]
        assert (said.finish == "error") == ("ZeroDivisionError" in said.error), said
    again = desk.ask(TEXT, max_tokens=20)
    assert (again.finish, again.tokens) == (expected.finish, expected.tokens)
    counts = desk.engine.status_counts
    assert counts["writing"] == counts["waiting"] == 0


@pytest.mark.parametrize(
    ("where", "name"),
    [(Sampler, "sample_token"), (KVCache, "claim_slot"), (Detokenizer, "feed_bytes")],
)
def test_what_breaks_one_job_leaves_the_text_of_the_others(
    folder: Path, expected: Output, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    desk = Desk(folder / "tiny.gguf")
    jobs = [desk.submit(TEXT, max_tokens=20) for _ in range(3)]
    trap = Trap(getattr(where, name), 2)
    monkeypatch.setattr(where, name, lambda *given, **named: trap(*given, **named))
    desk.run()
    said = [desk.said[job] for job in jobs]
    assert sorted(str(one.finish) for one in said) == ["error", "length", "length"]
    assert all(one.tokens == expected.tokens for one in said if one.finish == "length")


def test_a_request_that_can_t_be_begun_ends_with_a_sentence(folder: Path) -> None:
    desk = Desk(folder / "tiny.gguf")
    odd: Any = "five"
    job = desk.submit(TEXT, sampling=SamplerParams(top_k=odd))
    desk.run()
    assert desk.said[job].finish == "error"
    assert "mistake of rig's own (" in desk.said[job].error


def test_an_output_that_can_t_be_sent_ends_its_own_reply(folder: Path, expected: Output) -> None:
    desk = Desk(folder / "tiny.gguf")
    good, bad = desk.submit(TEXT, max_tokens=20), desk.submit(TEXT + "bad", max_tokens=20)

    def emit(outputs: list[Output]) -> None:
        if any(output.id == bad and output.finish != "error" for output in outputs):
            raise ValueError
        desk._take(outputs)

    desk.engine._emit = emit
    desk.run()
    assert desk.said[good].tokens == expected.tokens
    assert (desk.said[bad].finish, desk.said[bad].tokens) == ("error", [])


def test_adapters_that_are_not_loaded_are_named(folder: Path) -> None:
    with Server(folder / "tiny.gguf", folder / "none") as server:
        for id in (0, 1, -1):
            refused = server.chat("hi", lora=[{"id": id}])
            said = refused.json()["error"]["message"]
            assert (refused.status_code, said) == (400, f"There is no adapter {id}: 0 are loaded.")
        assert server.chat("hi", lora=[{"id": 0}] * 1000).status_code == 400
        assert server.chat("hi", lora=[]).status_code == 200
        assert server.metric("crashes") == 0
    with Server(
        folder / "tiny.gguf", folder / "one", "--lora", str(folder / "style.gguf")
    ) as server:
        assert server.chat("hi", lora=[{"id": 0}]).status_code == 200
        twice = server.chat("hi", lora=[{"id": 0}, {"id": 0, "scale": 0.5}])
        assert "names adapter 0 twice" in twice.json()["error"]["message"]
