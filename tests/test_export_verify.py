"""The check finds what goes wrong in exports, loudly: `pytest tests/test_export_verify.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from export.verify.logits import kl_divergence
from rig.cli import main
from rig.model.chat_template import render_chat
from rig.model.reply_format import TAUGHT
from rig.model.toy import toy_folder as toy
from rig.runs import Run
from support import tiny_models


def rig(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a copy of the toy model, with an adapter that moves it a little; exported, unchecked."""
    root = tmp_path_factory.mktemp("checked")
    shutil.copytree(toy(), root / "base", ignore=shutil.ignore_patterns("__pycache__"))
    run = Run.create(
        root / "runs/taught", recipe="[trainer]\nmax_completion_length = 96\n", base="base"
    )
    adapter(run)
    run.update_record("trained")
    return root


def adapter(run: Run, size: float = 0.02) -> None:
    tiny_models.make_adapter(run.adapter_folder, toy(), targets="(q|v|up)_proj", size=size)
    TAUGHT.save_to(run.adapter_folder)


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_good_export_passes_and_says_by_how_much(here: Path) -> None:
    pytest.importorskip("torch")
    done = rig("taught", "--gguf", "--quant", "Q4_K_M,F16,Q8_0", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["check"]
    run = Run.open(here / "runs/taught")
    assert run.state == "checked"
    assert run.record["check"] == found
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["tokens"]["different"] == 0
    assert found["tokens"]["tokens"] > 2000
    assert found["adapter"]["tensors"] == 12
    assert found["adapter"]["moves_kl"] > 1e-4
    coarse, half, fine = (
        found["files"][f"taught-{quant}.gguf"] for quant in ("Q4_K_M", "F16", "Q8_0")
    )
    assert (half["kl"], half["top1"]) == (0.0, 1.0)
    assert half["trained_kl"] < 1e-4 < fine["trained_kl"] < coarse["trained_kl"] < 0.5
    assert coarse["top1"] < fine["top1"] <= 1.0
    assert [one["ended"] for one in (coarse, half, fine)] == [5, 5, 5]
    assert all(one["changed_bytes"] > 0.01 for one in (coarse, half, fine))
    assert not list(here.rglob("*.part"))


def test_without_a_16_bit_file_one_is_made_for_the_check_and_removed(here: Path) -> None:
    done = rig("taught", "--gguf", "--quant", "Q8_0", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [entry["quant"] for entry in found["files"]] == ["Q8_0"]
    assert 0 < found["check"]["files"]["taught-Q8_0.gguf"]["kl"] < 0.02
    assert not list(here.rglob("*.part"))


def test_the_table_is_short_and_tells_the_figures(here: Path) -> None:
    done = rig("taught", "--gguf", "--quant", "Q8_0")
    assert done.exit_code == 0, done.output
    assert "taught-Q8_0.gguf" in done.stdout
    assert "0 texts cut differently" in done.stdout
    assert "5/5" in done.stdout
    assert len(done.stdout.splitlines()) < 12


def zero_adapter(here: Path) -> None:
    adapter(Run.open(here / "runs/taught"), size=0.0)


def faint_adapter(here: Path) -> None:
    adapter(Run.open(here / "runs/taught"), size=2e-6)


def begin_twice(here: Path) -> None:
    path = here / "base/chat_template.jinja"
    path.write_text("{{ bos_token }}" + path.read_text("utf-8"), "utf-8")


def broken_template(here: Path) -> None:
    (here / "base/chat_template.jinja").write_text("{{ raise_exception('never') }}", "utf-8")


def never_ends(here: Path) -> None:
    """Random weights: a training that forgot how to stop."""
    config = json.loads((here / "base/config.json").read_text("utf-8"))
    values = tiny_models.weights(config, "llama", 0, False)
    tiny_models.write_weights(here / "base", values, "BF16")


@pytest.mark.parametrize(
    ("harm", "quant", "sentence"),
    [
        (zero_adapter, "Q8_0", "The adapter has no effect: every change it makes is zero"),
        (
            faint_adapter,
            "Q4_0",
            "has no effect in taught-Q4_0.gguf: its type rounds every change away",
        ),
        (begin_twice, "Q8_0", "begins a text twice (<|begin_of_text|> <|begin_of_text|>)"),
        (broken_template, "Q8_0", "refuses these messages: never."),
        (
            never_ends,
            "Q8_0",
            "5 of 5 answers do not end in 96 tokens. Was the model taught to stop",
        ),
    ],
)
def test_what_is_wrong_from_the_start_fails_the_export(
    here: Path, harm: Callable[[Path], None], quant: str, sentence: str
) -> None:
    harm(here)
    done = rig("taught", "--gguf", "--quant", quant, "--json")
    assert done.exit_code == 1
    assert "The check failed." in done.stderr
    assert sentence in " ".join(done.stderr.split())
    found = json.loads(done.stdout)["check"]
    assert found["ok"] is False
    run = Run.open(here / "runs/taught")
    assert run.state == "exported"
    assert run.record["check"]["ok"] is False


def other_template(here: Path) -> None:
    path = here / "base/chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("| trim", ""), "utf-8")


def other_merges(here: Path) -> None:
    path = here / "base/tokenizer.json"
    whole = json.loads(path.read_text("utf-8"))
    whole["model"]["merges"] = whole["model"]["merges"][:200]
    whole["model"]["ignore_merges"] = False
    tiny_models.write_json(path, whole)


def other_reply_format(here: Path) -> None:
    path = here / "runs/taught/adapter/reply_format.json"
    path.write_text(path.read_text("utf-8").replace("Think before", "Think long before"), "utf-8")


def other_weights(here: Path) -> None:
    """As a wrong permutation would: sizes fit, it loads, and it computes something else."""
    Run.open(here / "runs/taught")
    tiny_models.make_adapter(
        here / "runs/taught/adapter", toy(), targets="(q|v|up)_proj", size=0.1, seed=9
    )


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (other_template, "has another chat template than"),
        (other_merges, "texts into other tokens than the tokenizer in base"),
        (other_reply_format, "does not carry the system prompt and marks it was taught"),
        (other_weights, "Even in 16 bit the file is not the model that was trained"),
    ],
)
def test_what_changed_after_the_export_is_seen_by_the_check_alone(
    here: Path, harm: Callable[[Path], None], sentence: str
) -> None:
    pytest.importorskip("torch")
    assert rig("taught", "--gguf", "--quant", "F16", "--no-check").exit_code == 0
    harm(here)
    done = rig("taught", "--check", "--json")
    assert done.exit_code == 1
    assert sentence in " ".join(done.stderr.split())
    assert json.loads(done.stdout)["check"]["ok"] is False


def test_the_check_alone_passes_a_good_file_and_makes_nothing(here: Path) -> None:
    assert rig("taught", "--gguf", "--quant", "Q8_0", "--no-check").exit_code == 0
    before = sorted(path for path in here.rglob("*") if path.name != ".lock")
    done = rig("taught", "--check", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == []
    assert sorted(path for path in here.rglob("*") if path.name != ".lock") == before
    assert Run.open(here / "runs/taught").state == "checked"


def test_a_model_that_is_no_run_is_checked_too(here: Path) -> None:
    assert rig("base", "--gguf", "--quant", "Q8_0", "--no-check").exit_code == 0
    done = rig("base", "--check", "--out", "base-Q8_0.gguf", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["check"]
    assert found["adapter"].get("relative_change") is None
    assert found["files"]["base-Q8_0.gguf"]["asked"] == 5


def test_the_questions_are_the_trainings_own_where_it_kept_them(here: Path) -> None:
    run = Run.open(here / "runs/taught")
    template = (here / "base/chat_template.jinja").read_text("utf-8")
    rows = []
    for number in range(7):
        question = (
            f"Tom has {number + 10} pears. He buys 5 more pears. How many pears does Tom have now?"
        )
        said = [
            {"role": "system", "content": TAUGHT.system_prompt},
            {"role": "user", "content": question},
        ]
        prompt = render_chat(template, said, bos="<|begin_of_text|>", eos="<|eot_id|>")
        rows.append(json.dumps({"step": number, "prompt": prompt, "completion": "15"}))
    (run.path / "samples.jsonl").write_text("\n".join(rows) + '\n{"step": 8, "pro', "utf-8")
    done = rig("taught", "--gguf", "--quant", "Q8_0", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["check"]
    answers = found["files"]["taught-Q8_0.gguf"]["answers"]
    assert len(answers) == 5
    assert all(
        any(digit.isdigit() for digit in answer) for answer in answers
    )  # it was asked for sums


def test_a_disk_without_room_for_the_16_bit_file_is_noted(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import plan

    monkeypatch.setattr(plan, "free_disk", lambda folder: 75_000_000)
    done = rig("taught", "--gguf", "--quant", "Q8_0", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["check"]
    assert "kl" not in found["files"]["taught-Q8_0.gguf"]
    assert any("no room on the disk" in note for note in found["notes"])


def test_divergence_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal((3, 7)).astype(np.float32) for _ in range(2))
    p = np.exp(one) / np.exp(one).sum(1, keepdims=True)
    q = np.exp(other) / np.exp(other).sum(1, keepdims=True)
    kl, same = kl_divergence(one, other)
    assert kl == pytest.approx(float((p * np.log(p / q)).sum(1).mean()), rel=1e-5)
    assert same == float(np.mean(one.argmax(1) == other.argmax(1)))
