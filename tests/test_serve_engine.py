"""pytest tests/test_serve_engine.py: the batched engine, without HTTP and in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rig.errors import RigError
from serve.engine.cost_model import STEP_TOGETHER, CostModel
from serve.engine.grammar import GrammarCompiler
from serve.engine.kv_disk import DiskKVCache
from serve.engine.kv_slots import SlotPool
from serve.engine.llama import LlamaContext, model_params
from serve.engine.sampling import Sampler, SamplerParams, _chain
from serve.engine.scheduler import Scheduler
from serve.engine.sequence import Output, Request
from serve.hardware.threads import ThreadTuner
from support import serve_gguf

GREEDY = SamplerParams(temperature=0)
TEXT = "the hat in on an the he in the hat on the tin; "


class Desk:
    """An engine, and what it said of each job."""

    def __init__(self, path: Path, *, ctx: int = 1024, sequences: int = 12, **options: Any) -> None:
        adapters = options.pop("adapters", ())
        self.native = LlamaContext(
            path,
            ctx=ctx,
            batch=512,
            sequences=sequences,
            threads=1,
            flash_attn=False,  # see test_flash_attention_rounds_otherwise_...
            adapters=adapters,
        )
        self.path = path
        self.said: dict[int, Output] = {}
        self.order: list[int] = []
        self.engine = Scheduler(self.native, self._take, **options)
        self.grammars = GrammarCompiler(self.native)
        self._next = 0

    def _take(self, events: list[Output]) -> None:
        for event in events:
            so_far = self.said.setdefault(event.id, Output(event.id))
            so_far.tokens += event.tokens
            so_far.text += event.text
            so_far.logprobs += event.logprobs
            so_far.timings = event.timings or so_far.timings
            so_far.error = event.error or so_far.error
            if event.finish:
                assert so_far.finish is None, "a job ends once"
                so_far.finish = event.finish
                self.order.append(event.id)

    def tokens(self, text: str) -> list[int]:
        return self.native.tokenize(text, special=True, add_special=True)

    def submit(self, prompt: str | list[int], **asked: Any) -> int:
        self._next += 1
        tokens = self.tokens(prompt) if isinstance(prompt, str) else prompt
        whole: dict[str, Any] = {"max_tokens": 24, "sampling": GREEDY, **asked}
        self.engine.add_request(Request(self._next, tokens, **whole))
        return self._next

    def run(self, steps: int = 100_000) -> None:
        while steps and self.engine.run_step():
            steps -= 1

    def ask(self, prompt: str | list[int], **asked: Any) -> Output:
        job = self.submit(prompt, **asked)
        self.run()
        return self.said[job]


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


def test_a_fixed_seed_repeats_and_none_is_another_each_time(desk: Desk) -> None:
    def ask(seed: int | None) -> list[int]:
        return desk.ask(TEXT, sampling=SamplerParams(temperature=1.5, seed=seed)).tokens

    assert ask(7) == ask(7)
    assert ask(0) == ask(0), "0 is a seed like any other"
    assert len({tuple(ask(None)) for _ in range(5)}) == 5
    assert ask(7) != ask(8)


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        (SamplerParams(temperature=5.0, top_k=1, seed=1), "one candidate is left"),
        (
            SamplerParams(temperature=5.0, top_k=0, top_p=0.0, seed=1),
            "only the likeliest is in the nucleus",
        ),
        (
            SamplerParams(temperature=5.0, top_k=0, top_p=1.0, min_p=1.0, seed=1),
            "none is as likely",
        ),
        (SamplerParams(temperature=0, top_k=3), "nothing is drawn at temperature 0"),
    ],
)
def test_cuts_that_leave_one_token_are_greedy(
    desk: Desk, sampling: SamplerParams, why: str
) -> None:
    assert desk.ask(TEXT, sampling=sampling).tokens == desk.ask(TEXT).tokens, why


@pytest.mark.parametrize(
    "asked",
    [
        SamplerParams(temperature=1.5, seed=3),
        SamplerParams(temperature=0.7, top_k=5, top_p=0.8, min_p=0.0, seed=3),
        SamplerParams(temperature=1.0, top_k=0, seed=3),
        SamplerParams(temperature=1.0, top_k=1000, typical_p=0.9, seed=3),
        SamplerParams(temperature=1.0, presence_penalty=2.0, seed=3),
        SamplerParams(temperature=0, logit_bias=((70, 3.0), (80, -1e9))),
        SamplerParams(temperature=1.2, logit_bias=((70, 9.0), (70, -2.0), (80, -1e9)), seed=3),
    ],
)
def test_the_short_list_of_candidates_is_drawn_from_as_llama_cpp_draws_from_all(
    desk: Desk, asked: SamplerParams
) -> None:
    """The same tokens as llama.cpp's own sampler, which looks at the whole vocabulary each time."""
    native = desk.native
    biases = (llama_cpp.llama_logit_bias * len(asked.logit_bias))(*asked.logit_bias)
    theirs = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for part in (
        llama_cpp.llama_sampler_init_logit_bias(native.n_vocab, len(biases), biases),
        _chain(native, asked),
    ):
        llama_cpp.llama_sampler_chain_add(theirs, part)
    ours = Sampler(native, asked)
    token, said = 65, []
    for pos in range(60):
        native.token[0], native.pos[0], native.seq[0], native.wants_logits[0] = token, pos, 0, 1
        assert native.decode(1) == 0
        before = native.row_logits(0).copy()
        expected = llama_cpp.llama_sampler_sample(theirs, native.ctx, 0)
        token = ours.sample_token(0)
        assert token == expected
        assert (native.row_logits(0) == before).all(), "the model's own scores are as they were"
        said.append(token)
    assert len(set(said)) > 5
    ours.free_chain()
    llama_cpp.llama_sampler_free(theirs)


def test_a_bias_forbids_and_forces_tokens(desk: Desk) -> None:
    first = desk.ask(TEXT).tokens[0]
    forbidden = desk.ask(TEXT, sampling=SamplerParams(temperature=0, logit_bias=((first, -100.0),)))
    assert first not in forbidden.tokens
    forced = desk.ask(TEXT, sampling=SamplerParams(temperature=0, logit_bias=((65, 1e9),)))
    assert forced.text == "A" * 24


def test_a_penalty_ends_repetition(desk: Desk) -> None:
    plain = desk.ask(TEXT, max_tokens=60).tokens
    spread = desk.ask(
        TEXT, max_tokens=60, sampling=SamplerParams(temperature=0, presence_penalty=9.0)
    )
    assert len(set(plain)) < 40
    assert len(set(spread.tokens)) == 60


def test_stop_strings_end_the_reply_and_do_not_show(desk: Desk) -> None:
    whole = desk.ask(TEXT).text
    stop = whole[5:8]
    cut = desk.ask(TEXT, stops=["nowhere", stop])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish == "stop"


def test_an_end_token_ends_the_reply(desk: Desk) -> None:
    eot = desk.tokens("<|eot_id|>")[-1]
    said = desk.ask(TEXT, sampling=SamplerParams(temperature=0, logit_bias=((eot, 1e9),)))
    assert (said.finish, said.text, said.tokens) == ("stop", "", [eot])


def test_log_probabilities_are_the_model_s(desk: Desk) -> None:
    said = desk.ask(
        TEXT, max_tokens=5, logprobs=260, sampling=SamplerParams(temperature=0.7, seed=3)
    )
    assert len(said.logprobs) == 5
    for token, row in zip(said.tokens, said.logprobs, strict=True):
        (chosen, chance), *likeliest = row
        assert chosen == token
        assert dict(likeliest).get(token, chance) == chance
        chances = [p for _, p in likeliest]
        assert chances == sorted(chances, reverse=True)
        assert sum(2.718281828459045**p for p in chances) == pytest.approx(1, abs=0.01)


def test_a_full_context_ends_the_reply_and_nothing_is_cut_off(model: Path) -> None:
    desk = Desk(model, ctx=256, sequences=4)
    said = desk.ask(TEXT, max_tokens=None, sampling=SamplerParams(temperature=1.0, seed=5))
    assert said.finish in ("length", "stop")
    long = desk.ask(TEXT, max_tokens=None, sampling=no_end(desk))
    assert long.finish == "length"
    assert len(desk.tokens(TEXT)) + len(long.tokens) == 256


def no_end(desk: Desk) -> SamplerParams:
    """Greedy, and the reply never ends by itself."""
    return SamplerParams(temperature=0, logit_bias=((desk.tokens("<|eot_id|>")[-1], -1e9),))


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


# Prefixes ---------------------------------------------------------------------------------------


def test_a_common_beginning_is_computed_once(desk: Desk) -> None:
    first = desk.ask(TEXT * 5 + "one")
    second = desk.ask(TEXT * 5 + "two")
    assert first.timings["cache_n"] == 0
    assert second.timings["cache_n"] >= len(desk.tokens(TEXT * 5)) - 2
    assert second.tokens == Desk(desk.path).ask(TEXT * 5 + "two").tokens


def test_those_who_come_together_wait_for_the_prefix_that_one_of_them_reads(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(model, ctx=4096)
    monkeypatch.setattr(desk.engine.cost_model, "prefill_chunk_size", lambda writers: 64)
    jobs = [desk.submit(TEXT * 20 + f"question {i}") for i in range(6)]
    desk.run()
    common = len(desk.tokens(TEXT * 20))
    read = sum(desk.said[job].timings["prompt_n"] for job in jobs)
    assert read < common + 6 * 32
    assert desk.engine.status_counts["cells_used"] < common + 6 * 64
    alone = [Desk(model).ask(TEXT * 20 + f"question {i}").tokens for i in range(6)]
    assert [desk.said[job].tokens for job in jobs] == alone


def test_a_conversation_goes_on_where_it_was(desk: Desk) -> None:
    first = desk.ask(TEXT, max_tokens=20)
    prompt = [*desk.tokens(TEXT), *first.tokens, *desk.tokens("and then?")]
    second = desk.ask(prompt)
    assert second.timings["cache_n"] >= len(desk.tokens(TEXT)) + 19
    assert desk.engine.status_counts["sequences"] == 1, "the second turn took the first one's place"


def test_what_rests_is_out_of_the_way_while_the_next_prompt_is_read(desk: Desk) -> None:
    first, second = (desk.tokens(TEXT * 3 + part * 100) for part in ("one ", "two "))
    said = desk.ask(first)
    desk.submit(second)
    desk.run(steps=1)
    assert desk.engine.status_counts["cells_used"] <= len(second)
    desk.run()
    again = desk.ask(first)
    assert again.timings["cache_n"] == len(first) - 1, "its copy was brought back"
    assert again.tokens == said.tokens


def test_what_is_too_large_for_a_copy_stays_where_there_is_room_for_both(model: Path) -> None:
    desk = Desk(model, parked_bytes=0)
    first, second, long = (
        desk.tokens(TEXT * 3 + part * n) for part, n in (("one ", 100), ("two ", 50), ("end ", 200))
    )
    desk.ask(first)
    desk.ask(second)
    assert desk.ask(first).timings["cache_n"] == len(first) - 1
    assert len(first) + len(long) > desk.native.n_ctx
    desk.submit(long)
    desk.run(steps=1)
    assert desk.engine.status_counts["cells_used"] <= len(long)


def test_idle_prefixes_make_room_for_whoever_needs_it(model: Path) -> None:
    desk = Desk(model, ctx=512, sequences=6)
    for i in range(20):
        prompt = f"{i} " + "y" * (100 + 15 * i)
        assert desk.ask(prompt).tokens == Desk(model).ask(prompt).tokens
    assert desk.engine.status_counts["cells_used"] <= 512


def test_a_prefix_is_there_after_a_restart(model: Path, tmp_path: Path) -> None:
    prompt = TEXT * 20
    before = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    said = before.ask(prompt + "one")
    before.engine.flush_to_disk()
    after = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    again = after.ask(prompt + "two")
    assert said.timings["cache_n"] == 0
    assert again.timings["cache_n"] >= len(after.tokens(prompt)) - 2
    assert again.tokens == Desk(model).ask(prompt + "two").tokens
    other = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "another model"))
    assert other.ask(prompt + "two").timings["cache_n"] == 0, "cells belong to one model"


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_a_damaged_prefix_is_computed_again(model: Path, tmp_path: Path, damage: str) -> None:
    prompt = TEXT * 20
    before = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    before.ask(prompt)
    before.engine.flush_to_disk()
    (file,) = tmp_path.glob("*.kv")
    after = Desk(model, disk=DiskKVCache(tmp_path, 1 << 30, "a"))
    data = bytearray(file.read_bytes())
    match damage:
        case "flip":
            data[-100] ^= 255
            file.write_bytes(data)
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "gone":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    again = after.ask(prompt)
    assert again.timings["cache_n"] == 0
    assert again.tokens == Desk(model).ask(prompt).tokens
    assert not file.exists() or file.stat().st_size == len(data)


def test_the_disk_keeps_to_its_limit_and_forgets_the_oldest(model: Path, tmp_path: Path) -> None:
    measure = Desk(model, disk=DiskKVCache(tmp_path / "x", 1 << 30, "a"))
    measure.ask("0" * 300)
    measure.engine.flush_to_disk()
    size = next((tmp_path / "x").glob("*.kv")).stat().st_size
    disk = DiskKVCache(tmp_path / "y", int(3.5 * size), "a")
    desk = Desk(model, disk=disk)
    for i in range(6):
        disk._budget = float(10 * size)  # the other limit is not what this is about
        desk.ask(str(i) * 300)
        desk.engine.flush_to_disk()
        files = list((tmp_path / "y").glob("*.kv"))
        assert sum(f.stat().st_size for f in files) <= 3.5 * size
    fresh = DiskKVCache(tmp_path / "y", int(3.5 * size), "a")
    found = [fresh.longest_prefix(desk.tokens(str(i) * 300), (), 0) is not None for i in range(6)]
    assert found == [False, False, False, True, True, True]


def test_no_more_is_written_in_six_hours_than_the_limit(model: Path, tmp_path: Path) -> None:
    disk = DiskKVCache(tmp_path, 250_000, "a")
    desk = Desk(model, disk=disk)
    for i in range(12):
        desk.ask(chr(65 + i) * 300)
        desk.engine.flush_to_disk()
    written = sum(1 for kept in disk._kept)
    assert 1 <= written <= 3
    disk._budget_at -= 6 * 3600
    desk.ask("z" * 300)
    desk.engine.flush_to_disk()
    assert disk.longest_prefix(desk.tokens("z" * 300), (), 0) is not None


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_cells_are_counted_once_however_sequences_share_them(data: st.DataObject) -> None:
    """Against a model that knows for each sequence which cells it refers to."""
    residents = SlotPool(8)
    cells: dict[Any, set[tuple[int, int]]] = {}
    fresh = 0
    for _ in range(data.draw(st.integers(1, 40))):
        here = list(residents)
        choices = ["add"] * (not residents.is_full) + ["grow", "drop", "busy"] * bool(here)
        match data.draw(st.sampled_from(choices)):
            case "add":
                source = data.draw(st.sampled_from([None, *here]))
                length = data.draw(st.integers(0, source.num_cells)) if source else 0
                made = residents.take_slot([], ())
                made.num_cells = length
                if source is not None and length:
                    made.source, made.num_shared_cells = source, length
                cells[made] = {c for c in cells.get(source, set()) if c[0] < length}
            case "grow":
                one = data.draw(st.sampled_from(here))
                for _ in range(data.draw(st.integers(1, 5))):
                    cells[one].add((one.num_cells, fresh := fresh + 1))
                    one.num_cells += 1
            case "drop":
                one = data.draw(st.sampled_from(here))
                residents.free_slot(one)
                del cells[one]
            case "busy":
                one = data.draw(st.sampled_from(here))
                one.busy = not one.busy
        assert residents.used_cells == len(set().union(*cells.values()))
        assert residents.pinned_cells == len(set().union(*(cells[r] for r in residents if r.busy)))


# Guessing ahead ---------------------------------------------------------------------------------


def test_guesses_are_taken_where_text_repeats_and_change_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, plain = Desk(model, ctx=4096), Desk(model, ctx=4096, drafting=False)
    monkeypatch.setattr(
        desk.engine.cost_model, "draft_lengths", lambda writers, chances: [len(c) for c in chances]
    )
    said = desk.ask(TEXT, max_tokens=600, sampling=no_end(desk))
    assert said.tokens == plain.ask(TEXT, max_tokens=600, sampling=no_end(plain)).tokens
    assert said.timings["draft_n_accepted"] > 100, "greedy nonsense goes round in circles"
    assert desk.engine.steps < plain.engine.steps
    drawn = SamplerParams(temperature=1.0, seed=9)
    assert desk.ask(TEXT, sampling=drawn).tokens == plain.ask(TEXT, sampling=drawn).tokens


def test_guesses_that_do_not_pay_are_not_made() -> None:
    pace = CostModel(512)
    for _ in range(20):
        for rows, seconds in ((1, 0.010), (2, 0.020), (3, 0.030), (9, 0.090)):
            pace.record_step(seconds, rows, 0)
    assert pace.draft_lengths(1, [[0.9**n for n in range(1, 9)]]) == [0], (
        "a row costs as much as a step"
    )
    for _ in range(50):
        for rows, seconds in ((1, 0.010), (2, 0.011), (3, 0.012), (9, 0.018)):
            pace.record_step(seconds, rows, 0)
    assert pace.draft_lengths(1, [[0.9**n for n in range(1, 9)]])[0] >= 4
    assert pace.draft_lengths(1, [[0.05**n for n in range(1, 9)]]) == [0], "hardly ever right"
    assert pace.draft_lengths(2, [[0.9, 0.8], [0.01, 0.001]]) == [2, 0], "each reply for itself"


def test_a_bad_time_with_guesses_is_forgotten_in_the_end() -> None:
    pace = CostModel(512)
    for _ in range(20):
        pace.record_step(0.010, 1, 0)
        pace.record_step(0.2, 9, 0)  # something else wanted the machine
        pace.record_step(0.064, 0, 64)
    chances = [[0.95**n for n in range(1, 9)]]
    assert sum(bool(pace.draft_lengths(1, chances)[0]) for _ in range(20)) == 0
    assert any(pace.draft_lengths(1, chances)[0] for _ in range(5000))


# Pace and threads -------------------------------------------------------------------------------


def test_a_chunk_is_as_long_as_a_step_may_take() -> None:
    pace = CostModel(512)
    assert pace.prefill_chunk_size(0) == 128, "nothing is known yet"
    for _ in range(20):
        pace.record_step(0.020, 1, 0)
        pace.record_step(0.020 + 64 * 0.005, 1, 64)
    assert pace.prefill_chunk_size(0) * 0.005 <= 1.2
    assert 16 <= pace.prefill_chunk_size(1) <= STEP_TOGETHER / 0.005 + 1
    for _ in range(40):
        pace.record_step(64 * 0.00001, 0, 64)
    assert pace.prefill_chunk_size(0) == 512


class Box:
    """A machine with a clock of its own: what a step takes with n threads, and the time they get."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.n = most
        self.cost: dict[int, float] = {}
        self.share: dict[int, float] = {}
        self.usual: float | None = None
        self.threads = ThreadTuner(self._use, most, lambda: self.now)

    def _use(self, n: int) -> None:
        self.n = n

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            took = self.cost[self.n]
            self.now += took
            trying = self.threads.in_trial
            if self.threads.record_step(
                took, took * self.share[self.n] * self.n, self.usual or took
            ):
                self.usual = None
            elif not trying:
                self.usual = took


def test_threads_give_way_while_another_program_runs_and_come_back() -> None:
    box = Box(4)
    box.cost, box.share = {4: 0.02, 3: 0.026, 2: 0.04, 1: 0.08}, dict.fromkeys(range(1, 5), 1.0)
    box.run(20)
    assert (box.threads.num_threads, box.threads.changes) == (4, 0)
    box.cost, box.share = {4: 0.2, 3: 0.027, 2: 0.04, 1: 0.08}, {4: 0.85, 3: 1.0, 2: 1.0, 1: 1.0}
    box.run(20)
    assert box.threads.num_threads == 3
    box.cost, box.share = {4: 0.02, 3: 0.026, 2: 0.04, 1: 0.08}, dict.fromkeys(range(1, 5), 1.0)
    box.run(130)
    assert box.threads.num_threads == 4


def test_a_blip_costs_one_long_step_and_not_a_whole_prompt() -> None:
    box = Box(2)
    box.cost, box.share = {2: 1.0, 1: 2.0}, {2: 0.85, 1: 1.0}
    box.run(6)
    assert (box.threads.num_threads, box.n, box.threads.in_trial) == (2, 2, False)
    assert box.now == 6.0, "two trials of one step of two seconds, two steps of one"
    box.cost, box.share = {2: 9.0, 1: 2.0}, {2: 0.6, 1: 1.0}
    box.run(30)
    assert box.threads.num_threads == 1
    box.cost, box.share = {2: 1.0, 1: 2.0}, {2: 1.0, 1: 1.0}
    box.run(5)
    assert (box.threads.num_threads, box.threads.in_trial) == (2, False), "and back at once"


def test_trials_that_change_nothing_become_rare() -> None:
    box = Box(2)
    box.cost, box.share = {2: 0.02, 1: 0.02}, {2: 0.5, 1: 1.0}
    box.run(600)
    assert box.threads.num_threads == 2
    assert box.threads._pause == 60.0


# Grammars ---------------------------------------------------------------------------------------

POST = {
    "type": "object",
    "properties": {
        "post": {"type": "string", "maxLength": 12},
        "n": {"type": "integer", "minimum": 3, "maximum": 17},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["post", "n", "kind"],
    "additionalProperties": False,
}


def test_a_schema_holds_whatever_is_sampled(desk: Desk) -> None:
    for seed in range(8):
        sampling = SamplerParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        matcher = desk.grammars.make_matcher({"schema": POST})
        said = desk.ask(TEXT, matcher=matcher, sampling=sampling, max_tokens=300)
        found = json.loads(said.text)
        assert said.finish == "stop"
        assert set(found) == {"post", "n", "kind"}
        assert 3 <= found["n"] <= 17
        assert len(found["post"]) <= 12
        assert found["kind"] in ("a", "b")


def test_a_model_that_keeps_to_the_grammar_by_itself_is_not_slowed(desk: Desk) -> None:
    said = desk.ask(TEXT, max_tokens=10)

    class Counting:
        """Passes on to a matcher that allows everything, and counts the looks at the vocabulary."""

        masks = 0

        def __init__(self, matcher: Any) -> None:
            self._matcher = matcher

        def __getattr__(self, name: str) -> Any:
            Counting.masks += name == "compute_bitmask"
            return getattr(self._matcher, name)

    anything = desk.grammars.make_matcher({"gbnf": r"root ::= [^\x00]*"})
    again = desk.ask(TEXT, max_tokens=10, matcher=Counting(anything))
    if "\ufffd" not in said.text:
        assert again.tokens == said.tokens
    strict = desk.grammars.make_matcher({"gbnf": 'root ::= "yes" | "no"'})
    before = Counting.masks
    assert desk.ask(TEXT, matcher=Counting(strict)).text in ("yes", "no")
    assert Counting.masks > before


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"schema": {"type": "strin"}}, "strin"),
        ({"schema": {"not": {}}}, "not"),
        ({"schema": {"type": "string", "pattern": "(("}}, "regex"),
        ({"schema": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"schema": {"$ref": "https://example.org/x"}}, "example.org"),
        ({"gbnf": "root ::= nope"}, "nope"),
        ({"gbnf": ""}, "root"),
    ],
)
def test_a_grammar_that_can_t_be_used_is_refused(
    desk: Desk, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(RigError) as error:
        desk.grammars.make_matcher(asked)
    assert says in error.value.message


def test_a_schema_nested_without_end_is_refused(desk: Desk) -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RigError, match="nested"):
        desk.grammars.make_matcher({"schema": schema})


TAGS = {
    "open": "<reasoning>",
    "close": "</reasoning>",
    "answer_open": "<answer>",
    "answer_close": "</answer>",
    "opened": False,
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a": 1}', True),
        ('<reasoning>2 < 3 </reason</reasoning>\n<answer>\n{"a": 1}\n</answer>\n', True),
        ('<reasoning>x</reasoning>{"a": 1}', True),
        ("<reasoning>x</reasoning>\n<answer>\n1\n</answer>", False),
        ("let me see", False),
    ],
)
def test_a_taught_model_may_think_before_its_json(desk: Desk, text: str, fits: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": False,
    }
    matcher = desk.grammars.make_matcher({"schema": schema, "thought": TAGS})
    tokens = desk.native.tokenize(text, special=True, add_special=False)
    taken = matcher.try_consume_tokens(tokens)
    assert (taken == len(tokens) and matcher.is_accepting()) == fits


def test_tags_that_are_tokens_of_their_own_may_enclose_the_thought(tmp_path: Path) -> None:
    path = serve_gguf.write(tmp_path / "think.gguf", words=("<think>", "</think>"))
    desk = Desk(path)
    tags = {"open": "<think>", "close": "</think>", "answer_open": "", "answer_close": ""}
    for opened, text in ((False, "<think>a</think>\n\n[1]"), (True, "a</think>[1]")):
        asked = {"schema": {"type": "array"}, "thought": tags | {"opened": opened}}
        matcher = desk.grammars.make_matcher(asked)
        tokens = desk.native.tokenize(text, special=True, add_special=False)
        assert matcher.try_consume_tokens(tokens) == len(tokens), matcher.get_error()
        assert matcher.is_accepting()


# Adapters ---------------------------------------------------------------------------------------


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
