"""The whole chain, command by command: `pytest tests/test_rig_quickstart.py` (`-m slow`: the quickstart).

On real input where ../shared/data is: real GSM8K rows, a real saved page, a real card from the database dump.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rig import quickstart
from rig.errors import RigError
from rig.server import connect

pytest.importorskip("trl", reason="needs every room: pip install -e '.[all]'")
pytest.importorskip("llama_cpp", reason="needs every room: pip install -e '.[all]'")

pytestmark = pytest.mark.timeout(1200)


def run(*arguments: str) -> str:
    """What `rig ...` printed; it must end well."""
    command = [sys.executable, "-P", "-m", "rig", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rig(*arguments: str) -> Any:
    """What `rig ... --json` printed."""
    return json.loads(run(*arguments, "--json"))


def stop_servers() -> None:
    """Ask every server that this test started to leave."""
    while (found := connect.find_running_server(None)) is not None:
        os.kill(int(found["pid"]), signal.SIGTERM)


@pytest.fixture
def served_after() -> Iterator[None]:
    yield
    stop_servers()


def gsm8k(folder: Path, shared: Path) -> Path:
    """Forty real rows, the short ones: the toy reads slowly."""
    lines = (shared / "data" / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()
    rows = sorted((json.loads(line) for line in lines[:400]), key=lambda row: len(row["question"]))
    path = folder / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:40]), "utf-8")
    return path


@pytest.mark.usefixtures("served_after")
def test_real_input_goes_through_the_whole_chain(elsewhere: Path, shared: Path) -> None:
    small = {
        "data.source": str(gsm8k(elsewhere, shared)),
        "data.held_out": 8,
        "data.max_prompt_length": 512,
        "grpo.num_generations": 4,
        "grpo.max_completion_length": 32,
        "schedule.max_steps": 2,
        "schedule.prompts_per_step": 2,
        "schedule.micro_batch": 8,
        "evaluation.problems": 4,
        "backend.preflight": "false",  # two steps on problems far above the toy: it would be stopped
    }
    changes = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    trained = rig("train", "toy-arithmetic", "--name", "real", *changes)
    assert trained["state"] == "trained"
    rows = [
        json.loads(x) for x in (elsewhere / "runs/real/log.jsonl").read_text("utf-8").splitlines()
    ]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all("rewards/correct/mean" in row for row in steps)

    exported = rig("export", "runs/real", "--gguf", "--quant", "Q8_0", "--no-check")
    assert exported["files"][0]["bytes"] > 1_000_000

    name, truth = sorted(
        json.loads((shared / "data/articles/ground_truth.json").read_text("utf-8")).items()
    )[0]
    page = elsewhere / "page.html"
    page.write_bytes(gzip.decompress((shared / f"data/articles/html/{name}.html.gz").read_bytes()))
    told = rig("summarise", str(page), "--model", "runs/real", "--length", "2")
    start = " ".join(truth["articleBody"].split())[:40]
    assert start in " ".join(told["text"].split())
    assert told["summary"]
    assert told["tokens_in"] > 100

    run("bot", "refresh", "--from", str(shared / "data/ygo/cardinfo.json"))
    drafted = rig("bot", "preview", "cards", "--card", "Acid Trap Hole", "--model", "runs/real")
    assert drafted["accepted"]
    assert "Acid Trap Hole" in drafted["post"]
    assert 0 < drafted["weighted_length"] <= 280


@pytest.mark.slow
@pytest.mark.usefixtures("served_after")
def test_the_quickstart_shows_what_it_promises(elsewhere: Path) -> None:
    found = rig("quickstart", "--seed", "2")
    assert found["accuracy_before"] <= 0.20 <= 0.70 <= found["accuracy_after"]
    assert found["format_before"] <= 0.30 <= 0.95 <= found["format_after"]
    assert found["gguf_agreement"] >= 0.95
    assert found["n"] == 200
    assert found["tweet_accepted"]
    assert found["card"] in found["tweet"]
    assert found["summary"]
    assert set(found["stages"]) >= {
        "train",
        "eval",
        "export",
        "serve",
        "gguf",
        "ask",
        "card",
        "summary",
    }


def test_real_input_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    loop = quickstart.QuickstartLoop(tmp_path / "q", seed=1)
    monkeypatch.setattr(loop, "run_step", lambda name, why, *command: asked.append(command))
    assert quickstart._real(loop, "mine.html") == "mine.html"
    assert quickstart._real(loop, None) == quickstart.REAL_PAGE
    assert asked == [("bot", "refresh")] * 2


class TestInterrupted:
    """The loop keeps what is done."""

    def test_a_step_that_is_done_is_not_run_again(self, tmp_path: Path) -> None:
        first = quickstart.QuickstartLoop(tmp_path / "q", seed=1)
        first.save_step("eval", {"a": 1}, 2.0)
        again = quickstart.QuickstartLoop(tmp_path / "q", seed=1)
        assert again.run_step("eval", "Judge", "no-such-command") == {"a": 1}
        assert again.step_seconds() == {"eval": 2.0}

    def test_a_failed_step_is_said_and_not_kept(self, tmp_path: Path) -> None:
        loop = quickstart.QuickstartLoop(tmp_path / "q", seed=1)
        with pytest.raises(RigError, match=r"Run `rig quickstart` again"):
            loop.run_step("eval", "Judge", "no-such-command")
        assert quickstart.QuickstartLoop(tmp_path / "q", seed=1).step_seconds() == {}

    def test_another_seed_does_not_mix_with_the_first(self, tmp_path: Path) -> None:
        quickstart.QuickstartLoop(tmp_path / "q", seed=1).save_step("eval", {}, 1.0)
        with pytest.raises(RigError, match="--fresh"):
            quickstart.QuickstartLoop(tmp_path / "q", seed=2)

    def test_a_damaged_memory_begins_anew(self, tmp_path: Path) -> None:
        loop = quickstart.QuickstartLoop(tmp_path / "q", seed=1)
        loop.save_step("eval", {}, 1.0)
        loop.file.write_text('{"seed": 1, "st', "utf-8")
        assert quickstart.QuickstartLoop(tmp_path / "q", seed=1).step_seconds() == {}
