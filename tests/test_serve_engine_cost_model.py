"""How far a step reads and guesses ahead: `pytest tests/test_serve_engine_cost_model.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.engine.cost_model import STEP_TOGETHER, CostModel
from serve.engine.sampling import SamplerParams
from support import serve_gguf
from support.serve_desk import TEXT, Desk, no_end


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


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
