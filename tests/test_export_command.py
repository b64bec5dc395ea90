"""`rig export` as a person uses it, and as the world disturbs it: `pytest tests/test_export_command.py`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export import plan
from export.checkpoint import safetensors
from export.gguf.convert import ConversionPass
from rig.cli import main
from rig.model.gguf import read_header
from rig.model.reply_format import TAUGHT, ReplyFormat
from rig.runs import Run
from support import tiny_models

ROOT = Path(__file__).resolve().parent.parent


def rig(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter for it, and a run of both."""
    root = tmp_path_factory.mktemp("made")
    model = tiny_models.make(
        root / "toy-model", "llama", num_hidden_layers=2, intermediate_size=256
    )
    run = Run.create(
        root / "runs/taught", recipe="[training]\nmax_completion_length = 24\n", base=str(model)
    )
    tiny_models.make_adapter(run.adapter_folder, model, size=0.03)
    TAUGHT.save_to(run.adapter_folder)
    run.update_record("trained")
    shutil.copytree(run.adapter_folder, root / "adapter")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of all that, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left_behind(folder: Path) -> list[str]:
    """Everything that is not finished."""
    return [path.name for path in folder.rglob("*.part")]


def test_a_run_becomes_files_that_the_run_knows(here: Path) -> None:
    done = rig("taught", "--gguf", "--quant", "q8_0,Q4_K_M", "--no-check", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    run = Run.open(here / "runs/taught")
    assert run.state == "exported"
    assert [entry["quant"] for entry in found["files"]] == ["Q8_0", "Q4_K_M"]
    assert [e["file"] for e in run.record["exports"]] == ["taught-Q8_0.gguf", "taught-Q4_K_M.gguf"]
    for told, kept in zip(found["files"], run.record["exports"], strict=True):
        path = run.path / kept["file"]
        assert path.stat().st_size == kept["bytes"] == told["bytes"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == kept["sha256"] == told["sha256"]
    assert run.gguf_files()[0].name == "taught-Q4_K_M.gguf"
    assert found["check"] is None
    assert found["seconds"] >= 0
    assert not left_behind(here)


def test_the_file_says_where_it_comes_from_and_how_it_was_taught_to_speak(here: Path) -> None:
    assert rig("taught", "--gguf", "--quant", "F16", "--no-check").exit_code == 0
    keys = read_header(here / "runs/taught/taught-F16.gguf").metadata
    assert ReplyFormat.from_metadata(keys) == TAUGHT
    assert keys["general.name"] == "taught"
    assert keys["rig.run"] == "taught"
    assert keys["rig.base"] == "toy-model"  # the folder's name: a file that travels tells no paths
    assert keys["general.base_model.0.name"] == "Toy Model"
    assert keys["general.file_type"] == 1


def test_exporting_again_replaces_the_entry_and_keeps_the_others(here: Path) -> None:
    for quants in ("Q8_0,Q4_0", "Q8_0"):
        assert rig("taught", "--gguf", "--quant", quants, "--no-check").exit_code == 0
    record = Run.open(here / "runs/taught").record
    assert [entry["quant"] for entry in record["exports"]] == ["Q4_0", "Q8_0"]


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["toy-model"], "toy-model-Q4_0.gguf"),
        (["toy-model", "--adapter-dir", "adapter"], "toy-model-Q4_0.gguf"),
        (["adapter"], "adapter-Q4_0.gguf"),
        (["adapter", "--base", "toy-model", "--out", "sub/x.gguf"], "sub/x.gguf"),
        (["toy-model", "--out", "runs"], "runs/toy-model-Q4_0.gguf"),
        (["toy"], "toy-Q4_0.gguf"),
        (["runs/taught", "--out", "elsewhere.gguf"], "elsewhere.gguf"),
    ],
)
def test_a_model_may_be_a_folder_an_adapter_the_toy_one_or_a_run(
    here: Path, arguments: list[str], file: str
) -> None:
    done = rig(*arguments, "--gguf", "--quant", "Q4_0", "--no-check")
    assert done.exit_code == 0, done.output
    assert file in done.stdout
    assert read_header(here / file).metadata["general.file_type"] == 2


def test_an_adapter_folder_changes_the_file(here: Path) -> None:
    rig("toy-model", "--gguf", "--quant", "Q8_0", "--no-check", "--out", "bare.gguf")
    rig("adapter", "--gguf", "--quant", "Q8_0", "--no-check", "--out", "taught.gguf")
    rig("runs/taught", "--gguf", "--quant", "Q8_0", "--no-check", "--out", "run.gguf")
    found = {}
    for name in ("bare", "taught", "run"):
        raw, entries = (
            (here / f"{name}.gguf").read_bytes(),
            read_header(here / f"{name}.gguf").tensors,
        )
        start = min(entry.offset for entry in entries)
        found[name] = hashlib.sha256(raw[start:]).hexdigest()
    assert found["bare"] != found["taught"] == found["run"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["toy-model"], 2, "Say what to make: --gguf, --merged or --adapter"),
        (["nothing", "--gguf"], 2, "There is no nothing: give a run, a model folder"),
        (["runs", "--gguf"], 2, "runs is no model to export"),
        (["toy-model", "--gguf", "--quant", "Q4_KM"], 2, "did you mean 'Q4_K_M'"),
        (
            ["toy-model", "--gguf", "--quant", "Q8_0,F16", "--out", "x.gguf"],
            2,
            "one file for 2 types",
        ),
        (
            ["toy-model", "--gguf", "--out", "adapter/adapter_config.json"],
            2,
            "is no GGUF file: name",
        ),
        (
            ["taught", "--adapter", "--out", "toy-model/model.safetensors"],
            2,
            "is no GGUF file: name",
        ),
        (["toy-model", "--gguf", "--merged", "--out", "x"], 2, "--out names one place"),
        (["toy-model", "--gguf", "--base", "toy-model"], 2, "--base goes with a run or an adapter"),
        (["taught", "--gguf", "--adapter-dir", "adapter"], 2, "has its own adapter"),
        (["toy-model", "--check"], 2, "wants the GGUF file: --out FILE"),
        (["taught", "--check"], 1, "has no exported file"),
        (["taught", "--check", "--gguf"], 2, "--check alone"),
        (["toy-model", "--adapter"], 2, "has no adapter"),
        (["toy-model", "--gguf", "--quant", "IQ2_XS"], 1, "needs an importance matrix"),
        (["no-one/has-this", "--gguf"], 1, "neither a folder nor in the hub's cache"),
    ],
)
def test_wrong_use_ends_in_a_sentence(
    here: Path, arguments: list[str], code: int, sentence: str
) -> None:
    before = sorted(here.rglob("*"))
    done = rig(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert sentence in " ".join(done.stderr.split())
    assert sorted(path for path in here.rglob("*") if path.name != ".lock") == before


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "org/name is a MambaForCausalLM, which rig cannot"),
        ({"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "awq"}},
         "is quantised already (awq)"),
        (None, "has no config.json: it is no whole model"),
    ],
)  # fmt: skip
def test_a_model_on_the_hub_is_judged_by_its_configuration_before_the_weights_come(
    here: Path, monkeypatch: pytest.MonkeyPatch, config: Any, sentence: str
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    fetched: list[list[str]] = []

    def fetch(model: str, allow_patterns: list[str]) -> str:
        fetched.append(allow_patterns)
        (here / "hub").mkdir(exist_ok=True)
        if config is not None:
            tiny_models.write_json(here / "hub/config.json", config)
        return str(here / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    done = rig("org/name", "--gguf")
    assert done.exit_code == 1
    assert sentence in " ".join(done.stderr.split())
    assert fetched == [["config.json"]]


def test_a_run_that_is_still_being_taught_is_refused(here: Path) -> None:
    run = Run.open(here / "runs/taught")
    run.update_record("training")
    shutil.rmtree(run.adapter_folder)
    done = rig("taught", "--gguf")
    assert done.exit_code == 1
    assert "has no finished adapter yet (it is training)" in done.stderr


def test_a_run_that_another_process_holds_is_refused(here: Path) -> None:
    with Run.open(here / "runs/taught").hold_lock():
        done = rig("taught", "--gguf", "--no-check")
    assert done.exit_code == 1
    assert "Another process is working on" in done.stderr


# ----------------------------------------------------------------------------------------------------------
# Damaged input: a sentence before anything is written


def cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size - size)


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xfe{{{")


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tiny_models.write_json(folder / "config.json", config | values)


DAMAGE = {
    "cut off": (lambda m: cut(m / "model.safetensors", 100), "is damaged (it ends at byte"),
    "cut in its header": (
        lambda m: os.truncate(m / "model.safetensors", 50),
        "its header is cut off",
    ),
    "scribbled on": (lambda m: scribble(m / "model.safetensors"), "its header makes no sense"),
    "empty": (lambda m: (m / "model.safetensors").write_bytes(b""), "its header is cut off"),
    "gone": (lambda m: (m / "model.safetensors").unlink(), "holds no weights"),
    "other width": (lambda m: change_config(m, hidden_size=128), "do not belong together"),
    "fewer layers": (
        lambda m: change_config(m, num_hidden_layers=1),
        "a LlamaForCausalLM does not have",
    ),
    "more layers": (lambda m: change_config(m, num_hidden_layers=3), "weights lack blk.2.attn_"),
    "an architecture we do not know": (
        lambda m: change_config(m, architectures=["MambaForCausalLM"]),
        "rig cannot export. Supported are Llama 2, 3",
    ),
    "4-bit weights": (
        lambda m: change_config(m, quantization_config={"quant_method": "bitsandbytes"}),
        "is quantised already (bitsandbytes): export from the 16-bit model",
    ),
    "no config": (lambda m: (m / "config.json").unlink(), "is no model to export"),
    "half a config": (
        lambda m: (m / "config.json").write_text("{", "utf-8"),
        "config.json is damaged",
    ),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer"),
    "positions of an unknown kind": (
        lambda m: change_config(m, rope_scaling={"rope_type": "longrope", "factor": 2.0}),
        "scales its positions by 'longrope'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_before_anything_is_written(here: Path, damage: str) -> None:
    hurt, sentence = DAMAGE[damage]
    hurt(here / "toy-model")  # type: ignore[no-untyped-call]
    done = rig("toy-model", "--gguf", "--no-check")
    assert done.exit_code in (1, 2), done.output
    assert sentence in " ".join(done.stderr.split())
    assert not list(here.glob("*.gguf"))
    assert not left_behind(here)


def test_a_missing_shard_is_named(here: Path) -> None:
    model = tiny_models.make(here / "sharded", "llama", shards=3, intermediate_size=256)
    (model / "model-00002-of-00003.safetensors").unlink()
    done = rig("sharded", "--gguf")
    assert done.exit_code == 1
    assert "lacks 1 of its 3 weight files (model-00002-of-00003.safetensors)" in done.stderr


def test_an_index_that_promises_more_than_there_is_is_refused(here: Path) -> None:
    model = tiny_models.make(here / "sharded", "llama", shards=2, intermediate_size=256)
    index = json.loads((model / safetensors.INDEX).read_text("utf-8"))
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00002.safetensors"
    tiny_models.write_json(model / safetensors.INDEX, index)
    done = rig("sharded", "--gguf")
    assert done.exit_code == 1
    assert "names 1 tensors that no weight file holds" in done.stderr


def test_weights_that_are_not_numbers_leave_no_file(here: Path) -> None:
    """A training that diverged saves NaN; the file would speak nonsense."""
    run = Run.open(here / "runs/taught")
    tiny_models.make_adapter(run.adapter_folder, here / "toy-model", size=float("nan"))
    done = rig("taught", "--gguf", "--quant", "Q8_0,Q4_K_M")
    assert done.exit_code == 1
    assert re.search(r"holds numbers that are not finite .*diverged", " ".join(done.stderr.split()))
    assert not list(here.rglob("*.gguf"))
    assert not left_behind(here)
    assert Run.open(run.path).state == "trained"


# ----------------------------------------------------------------------------------------------------------
# Disk and death


def test_too_small_a_disk_is_seen_before_the_first_byte(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "free_disk", lambda folder: 60 << 20)
    done = rig("taught", "--gguf", "--quant", "Q8_0", "--no-check")
    assert done.exit_code == 1
    assert "has 0.1 GB free, the export needs" in done.stderr
    assert not list(here.rglob("*.gguf"))


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may fill it meanwhile."""
    taken = ConversionPass.fill_rows
    calls = []

    def full(self: ConversionPass, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return taken(self, *arguments)

    monkeypatch.setattr(ConversionPass, "fill_rows", full)
    done = rig("taught", "--gguf", "--quant", "Q8_0", "--no-check")
    assert done.exit_code == 1
    assert "The disk is full" in done.stderr
    assert not list(here.rglob("*.gguf"))
    assert not left_behind(here)


SLOW = """
import sys, time
from export.gguf import convert
whole = convert.ConversionPass.fill_rows
def slowly(self, *arguments):
    time.sleep(0.02)
    return whole(self, *arguments)
convert.ConversionPass.fill_rows = slowly
from rig.cli import main
main(["export", "taught", "--gguf", "--quant", "Q8_0,Q4_K_M", "--no-check", "--threads", "1"])
"""


def kill_while_exporting(here: Path, after: float, number: int) -> tuple[int, float]:
    """Start an export, end it after `after` seconds of writing; its exit code, and how long it wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", SLOW], cwd=here, env=environment)
    deadline = time.monotonic() + 60
    while not left_behind(here) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    writing = time.monotonic()
    try:
        child.wait(after)
    except subprocess.TimeoutExpired:
        child.send_signal(number)
    return child.wait(60), time.monotonic() - writing


def check_nothing_under_the_final_names(here: Path) -> None:
    assert not [path for path in here.rglob("*.gguf") if not path.name.startswith(".")]
    record = Run.open(here / "runs/taught").record
    assert record["state"] == "trained"
    assert "exports" not in record


@pytest.mark.parametrize("after", [0.0, 0.15, 0.4])
def test_killed_in_the_middle_there_is_no_file_and_the_next_export_cleans_up(
    here: Path, after: float
) -> None:
    assert kill_while_exporting(here, after, signal.SIGKILL)[0] == -signal.SIGKILL
    check_nothing_under_the_final_names(here)
    assert left_behind(here)  # a killed process cannot tidy up
    assert rig("taught", "--gguf", "--quant", "Q8_0,Q4_K_M", "--no-check").exit_code == 0
    assert not left_behind(here)


@pytest.mark.parametrize(
    ("model", "old", "swept"), [("taught", 0, True), ("adapter", 0, False), ("adapter", 700, True)]
)
def test_what_a_killed_merge_left_is_removed_when_nobody_can_be_working_on_it(
    here: Path, model: str, old: int, swept: bool
) -> None:
    """A run is locked, so a part in it is dead; elsewhere another export may be writing it."""
    place = here / "runs/taught" if model == "taught" else here
    name = "merged" if model == "taught" else "adapter-merged"
    left = place / f".{name}.x1y2.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    for path in (left, left / "model.safetensors"):
        os.utime(path, (time.time() - old,) * 2)
    done = rig(model, "--merged")
    assert done.exit_code == 0, done.output
    assert (place / name / "model.safetensors").is_file()
    assert left.exists() != swept


def test_ctrl_c_leaves_nothing_at_all(here: Path) -> None:
    assert kill_while_exporting(here, 0.2, signal.SIGINT)[0] == 130
    check_nothing_under_the_final_names(here)
    assert not left_behind(here)


@pytest.mark.slow
def test_killed_at_any_of_a_hundred_moments_there_is_no_file(here: Path) -> None:
    """Evenly over the whole of it: from the first temporary file until a little after the last rename."""
    folder = here / "runs/taught"

    def finished() -> dict[str, str]:
        paths = [path for path in folder.glob("*.gguf") if not path.name.startswith(".")]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    code, took = kill_while_exporting(here, 60.0, signal.SIGKILL)
    whole = finished()
    assert (code, len(whole)) == (0, 2)  # nobody disturbed it
    killed = partly = 0
    for attempt in range(200):
        for path in [*folder.glob("*.gguf"), *folder.glob(".*.part")]:
            path.unlink()
        Run.open(folder).update_record("trained", exports=[])
        code, _ = kill_while_exporting(here, took * 1.05 * (attempt % 100) / 100, signal.SIGKILL)
        assert finished().items() <= whole.items()
        for entry in Run.open(folder).record["exports"]:
            assert finished()[entry["file"]] == entry["sha256"]
        killed += code == -signal.SIGKILL
        partly += len(finished()) == 1
        if killed == 100:
            break
    print(f"{killed} killed of {attempt + 1}, {partly} of them between the two files")
    assert killed == 100


# ----------------------------------------------------------------------------------------------------------
# Lightness

WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "peft", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
from rig.cli import main
main(["export", "taught", "--gguf", "--quant", "F16,Q4_K_M", "--merged", "--adapter", "--json"])
"""


def test_all_of_it_works_without_torch(here: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        cwd=here, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert len(found["files"]) == 2
    assert found["merged"] == "runs/taught/merged"
    assert found["adapter"]["file"] == "runs/taught/taught-lora.gguf"
    assert any("torch, transformers, peft is not installed" in n for n in found["check"]["notes"])


def test_the_progress_goes_to_stderr_and_only_for_a_person(here: Path) -> None:
    done = rig("taught", "--gguf", "--quant", "Q8_0", "--no-check")
    assert done.stderr == ""
    size = (here / "runs/taught/taught-Q8_0.gguf").stat().st_size / 1e6
    assert done.stdout.splitlines() == [
        f"runs/taught/taught-Q8_0.gguf  Q8_0  {size:.1f} MB",
        "runs/taught/Modelfile",
    ]
