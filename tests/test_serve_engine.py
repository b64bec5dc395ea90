"""pytest tests/test_serve_engine.py: the batched engine, without HTTP and in this process."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.errors import RigError
from serve.engine.llama import LlamaContext, model_params
from serve.engine.sampling import SamplerParams
from serve.engine.scheduler import Scheduler
from serve.engine.sequence import Output, Request
from support import serve_gguf
from support.serve_desk import GREEDY, TEXT, Desk, no_end


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def desk(model: Path) -> Desk:
    return Desk(model)


def test_a_reply_is_the_same_as_llama_cpp_s_own(model: Path, desk: Desk) -> None:
    from llama_cpp import Llama

    whole = Llama(str(model), n_ctx=512, n_threads=1, verbose=False)
    prompt = desk.tokens(TEXT)
    theirs = []
    for token in whole.generate(prompt, temp=0.0, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == 40 or desk.native.is_end(token):
            break
    whole.close()
    assert desk.ask(prompt, max_tokens=40).tokens == theirs


@pytest.mark.parametrize(
    ("info", "repacked"), [(b"AMX_INT8 = 1 | ", False), (b"AVX2 = 1 | ", True)]
)
def test_amx_kernels_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, info: bytes, repacked: bool
) -> None:
    monkeypatch.setattr("llama_cpp.llama_print_system_info", lambda: info)
    assert model_params().use_extra_bufts is repacked


def test_eight_at_once_say_what_each_says_alone(model: Path) -> None:
    prompts = [TEXT * (1 + i) + f" number {i}" for i in range(8)]
    alone = [Desk(model).ask(prompt, max_tokens=48).tokens for prompt in prompts]
    together = Desk(model, ctx=4096)
    jobs = [together.submit(prompt, max_tokens=48) for prompt in prompts]
    together.run()
    assert [together.said[job].tokens for job in jobs] == alone


def test_a_request_joins_and_leaves_between_any_two_steps(model: Path) -> None:
    rng = random.Random(1)
    desk = Desk(model, ctx=4096, sequences=24)
    expected, jobs = {}, []
    for i in range(20):
        prompt, n = TEXT[: rng.randrange(3, 40)] + str(i), rng.randrange(1, 40)
        expected[i] = Desk(model).ask(prompt, max_tokens=n).tokens
        jobs.append(desk.submit(prompt, max_tokens=n))
        for _ in range(rng.randrange(6)):
            desk.engine.run_step()
    desk.run()
    assert {i: desk.said[job].tokens for i, job in enumerate(jobs)} == expected


def test_reading_a_long_prompt_does_not_stop_those_who_write(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(model, ctx=4096)
    monkeypatch.setattr(
        desk.engine.cost_model, "prefill_chunk_size", lambda writers: 32 if writers else 512
    )
    writer = desk.submit("the hat", max_tokens=200)
    desk.run(5)
    reader = desk.submit("x" * 1600, max_tokens=1)
    before, steps = len(desk.said[writer].tokens), 0
    while reader not in desk.said:
        desk.engine.run_step()
        steps += 1
    assert steps >= 1600 // 32
    assert len(desk.said[writer].tokens) - before >= steps - 2


def test_stop_strings_end_the_reply_and_do_not_show(desk: Desk) -> None:
    whole = desk.ask(TEXT).text
    stop = whole[5:8]
    cut = desk.ask(TEXT, stops=["nowhere", stop])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish == "stop"


def test_a_full_context_ends_the_reply_and_nothing_is_cut_off(model: Path) -> None:
    desk = Desk(model, ctx=256, sequences=4)
    said = desk.ask(TEXT, max_tokens=None, sampling=SamplerParams(temperature=1.0, seed=5))
    assert said.finish in ("length", "stop")
    long = desk.ask(TEXT, max_tokens=None, sampling=no_end(desk))
    assert long.finish == "length"
    assert len(desk.tokens(TEXT)) + len(long.tokens) == 256


def test_when_cells_run_out_a_reply_steps_back_and_is_finished_later(model: Path) -> None:
    alone = Desk(model, ctx=512)
    expected = [
        alone.ask(TEXT + str(i), max_tokens=150, sampling=no_end(alone)).tokens for i in range(4)
    ]
    desk = Desk(model, ctx=512)
    jobs = [
        desk.submit(TEXT + str(i), max_tokens=150, sampling=no_end(desk), urgent=i != 2)
        for i in range(4)
    ]
    desk.engine.run_step()
    while not desk.engine._waiting:
        desk.engine.run_step()
    assert [w.request.id for w in desk.engine._waiting] == [jobs[2]], (
        "the bot's reply, not a person's"
    )
    desk.run()
    assert [desk.said[job].tokens for job in jobs] == expected
    assert [desk.said[job].finish for job in jobs] == ["length"] * 4


def test_a_cancelled_reply_is_gone_after_one_step(desk: Desk) -> None:
    job, other = desk.submit(TEXT, max_tokens=500), desk.submit("he", max_tokens=5)
    desk.run(3)
    desk.engine.cancel_request(job)
    desk.engine.run_step()
    assert desk.said[job].finish == "cancelled"
    desk.run()
    assert desk.said[other].finish == "length"
    waiting = desk.submit(TEXT)
    desk.engine.cancel_request(waiting)
    desk.run()
    assert desk.said[waiting].finish == "cancelled"


def test_a_running_decode_stops_at_once_when_nobody_needs_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(model, ctx=4096)
    monkeypatch.setattr(desk.engine.cost_model, "prefill_chunk_size", lambda writers: 512)
    job = desk.submit("x" * 3000)
    desk.engine.run_step()
    decode: Callable[[int], int] = desk.native.decode
    results = []

    def cancelled_meanwhile(rows: int) -> int:
        desk.engine.cancel_request(job)
        results.append(decode(rows))
        return results[-1]

    monkeypatch.setattr(desk.native, "decode", cancelled_meanwhile)
    desk.run()
    assert results == [2], "llama.cpp's word for aborted"
    assert desk.said[job].finish == "cancelled"
    monkeypatch.setattr(desk.native, "decode", decode)
    assert desk.ask(TEXT).tokens == Desk(model).ask(TEXT).tokens, "what follows is not harmed"


def test_a_paused_reply_rests_and_goes_on(desk: Desk) -> None:
    expected = desk.ask(TEXT, max_tokens=30).tokens
    job = desk.submit(TEXT, max_tokens=30)
    desk.run(5)
    desk.engine.pause_request(job)
    assert not desk.engine.run_step()
    desk.engine.pause_request(job, False)
    desk.run()
    assert desk.said[job].tokens == expected


def test_what_was_written_before_a_crash_is_continued(desk: Desk) -> None:
    for sampling in (
        GREEDY,
        SamplerParams(temperature=1.2, seed=4),
        SamplerParams(temperature=0, repeat_penalty=1.3),
    ):
        whole = desk.ask(TEXT, max_tokens=30, sampling=sampling)
        rest = desk.ask(TEXT, max_tokens=30, sampling=sampling, already=whole.tokens[:13])
        assert whole.tokens[:13] + rest.tokens == whole.tokens


def test_adapters_are_chosen_per_reply_and_share_no_cells(model: Path, tmp_path: Path) -> None:
    lora = [serve_gguf.write_lora(tmp_path / f"{i}.gguf", seed=i) for i in (2, 3)]
    desk = Desk(model, adapters=lora, ctx=4096)
    chosen: list[tuple[tuple[int, float], ...]] = [
        (),
        ((0, 1.0),),
        ((1, 1.0),),
        ((0, 0.5), (1, 0.5)),
    ]
    jobs = [desk.submit(TEXT, adapters=adapters, max_tokens=16) for adapters in chosen]
    desk.run()
    said = [desk.said[job].tokens for job in jobs]
    assert len({tuple(tokens) for tokens in said}) == 4
    assert [desk.said[job].timings["cache_n"] for job in jobs] == [0, 0, 0, 0]
    assert said[0] == Desk(model).ask(TEXT, max_tokens=16).tokens
    again = desk.ask(TEXT, adapters=chosen[1], max_tokens=16)
    assert again.tokens == said[1]
    assert again.timings["cache_n"] > 0


def test_more_sequences_than_rows_in_a_step_are_no_reason_to_fail(model: Path) -> None:
    """llama.cpp ends the process for a batch of fewer rows than sequences (`--parallel 10 --batch 32`)."""
    native = LlamaContext(model, ctx=4096, batch=32, sequences=36, threads=1, flash_attn=False)
    said: dict[int, list[int]] = {}

    def take(outputs: list[Output]) -> None:
        for output in outputs:
            said.setdefault(output.id, []).extend(output.tokens)

    engine = Scheduler(native, take)
    for i in range(34):
        engine.add_request(Request(i, [65 + i % 5, 66], max_tokens=4, sampling=GREEDY))
    while engine.run_step():
        pass
    assert [len(said[i]) for i in range(34)] == [4] * 34
    assert said[0] == said[5] == said[30]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all" * 100])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(RigError, match="can't load"):
        LlamaContext(path, ctx=256, batch=64, sequences=2, threads=1)


@pytest.mark.parametrize("parked", [0, 1 << 22])
@pytest.mark.parametrize("size", [110, 160, 240])
def test_more_long_prompts_than_fit_are_all_answered(model: Path, size: int, parked: int) -> None:
    """They come at once; each fits alone, and who has no room yet waits instead of turning in circles."""
    desk = Desk(model, ctx=512, parked_bytes=parked)
    alone = Desk(model, ctx=512)
    prompts = [[i + 1, *desk.tokens("he on " * 200)[: size - 1]] for i in range(6)]
    for round_ in range(3):
        jobs = [desk.submit(prompt, max_tokens=6 + round_) for prompt in prompts]
        desk.run(600)
        for job, prompt in zip(jobs, prompts, strict=True):
            assert job in desk.said
            assert desk.said[job].tokens == alone.ask(prompt, max_tokens=6 + round_).tokens
