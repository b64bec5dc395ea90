"""What only a CUDA GPU can show, on the toy model: `pytest tests/test_train_grpo_gpu.py` (minutes)."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")

from train.data import dataset  # noqa: E402
from train.model import generate  # noqa: E402
from train.model.backends import TOY  # noqa: E402

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS == 0, reason="needs a CUDA GPU")]

ON_A_GPU = {"model.precision": "16bit", "schedule.max_steps": 30}
"""Changes to the quickstart's recipe: a GPU learns in 16 bits."""


def rig(*words: str, memory: float = 1.0) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, on a GPU that has only this share of its memory."""
    script = (
        "import sys, torch; from rig.cli import main\n"
        f"torch.cuda.set_per_process_memory_fraction({memory})\n"
        "sys.exit(main())"
    )
    plain = ["-m", "rig"] if memory == 1.0 else ["-c", script]
    return subprocess.run(
        [sys.executable, "-P", *plain, *words], capture_output=True, text=True, check=False
    )


def train(name: str, *words: str, **settings: Any) -> dict[str, Any]:
    """Train the quickstart's recipe with changes and return what `--json` printed."""
    changed = [f"--set={key}={value}" for key, value in (ON_A_GPU | settings).items()]
    done = rig("train", "toy-arithmetic", "--name", name, "--json", *changed, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def toy() -> tuple[Any, Any]:
    """The toy model in 32 bits on the GPU, and its tokenizer, padding on the left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    taught = AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.float32).cuda().eval()
    return taught, AutoTokenizer.from_pretrained(TOY, padding_side="left")


@pytest.mark.parametrize("limit", [17, 64])
def test_the_captured_step_says_what_generate_says(limit: int) -> None:
    from transformers import GenerationConfig

    taught, tokenizer = toy()
    rows = dataset.load_splits(source="generated:arithmetic", limit=32, held_out=8).train[:8]
    asked = tokenizer.apply_chat_template(
        [row["prompt"] for row in rows for _ in range(4)],
        add_generation_prompt=True,
        tokenize=False,
    )
    given = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False).to("cuda")
    config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=taught.config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ids, mask = given["input_ids"], given["attention_mask"]
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    plain = generate.generate(taught, ids, mask, config, graph=False)
    captured = generate.generate(taught, ids, mask, config, graph=True)
    blank = tokenizer.pad_token_id
    for said in (plain, captured):
        room = max(said.shape[1], expected.shape[1])
        padded = [
            torch.nn.functional.pad(one, (0, room - one.shape[1]), value=blank)
            for one in (said, expected)
        ]
        assert torch.equal(*padded)


@pytest.mark.parametrize("backend", ["trl", "unsloth"])
def test_the_loop_learns_on_a_gpu(elsewhere: Path, backend: str) -> None:
    if backend == "unsloth" and importlib.util.find_spec("unsloth") is None:
        pytest.skip("needs unsloth: pip install -c constraints.txt -e '.[unsloth]'")
    found = train("learnt", **{"backend.name": backend})
    run = Path("runs/learnt")
    assert json.loads((run / "run.json").read_text("utf-8"))["backend"] == backend
    assert found["before"]["strict"]["share"] < 0.4
    assert found["after"]["strict"]["share"] > 0.9
    assert found["after"]["format"]["share"] > 0.95
    for name in ("adapter/adapter_model.safetensors", "log.jsonl", "samples.jsonl", "report.html"):
        assert (run / name).stat().st_size > 0, name
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 31))
    assert all(row["memory_gib"] > 0 and row["reward"] is not None for row in steps)


def test_a_worst_case_that_does_not_fit_names_what_does(elsewhere: Path) -> None:
    words = ["train", "toy-arithmetic", "--name", "large", "--json"]
    words += [f"--set={key}={value}" for key, value in ON_A_GPU.items()]
    words += ["--set=schedule.prompts_per_step=128", "--set=schedule.micro_batch=1024"]
    words += ["--set=schedule.max_steps=1", "--set=evaluation.problems=0"]
    total = torch.cuda.get_device_properties(0).total_memory
    small = 2.0 * 2**30 / total
    tried: list[str] = []
    for _ in range(4):
        done = rig(*words, *tried, memory=small)
        if done.returncode == 0:
            break
        assert not Path("runs/large").exists()
        assert "fit: --set" in done.stderr, done.stderr[-3000:]
        tried.append("--set=" + done.stderr.rsplit("--set ", 1)[1].split()[0].rstrip("."))
    assert tried, "it was to be too large"
    assert done.returncode == 0, (tried, done.stderr[-3000:])


@pytest.mark.parametrize("gpus", [2, 4])
def test_several_gpus_learn_what_one_learns(elsewhere: Path, gpus: int) -> None:
    if gpus > GPUS:
        pytest.skip(f"needs {gpus} CUDA GPUs")
    found = train("all", "--gpus", str(gpus))
    assert found["after"]["strict"]["share"] > 0.9
    settings = json.loads(Path("runs/all/run.json").read_text("utf-8"))["settings"]
    share = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    assert share * gpus == 64, "the effective batch of the recipe"
    train("short", "--gpus", str(gpus), **{"schedule.max_steps": 4, "schedule.save_every": 2})
    done = rig("train", "--resume", "runs/short", "--json", "--set=schedule.max_steps=6")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 6


def test_what_can_not_fit_is_refused_before_its_weights_are_loaded(elsewhere: Path) -> None:
    """A folder with a configuration and no weights: a loader would say so, the refusal comes first."""
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    Path("large").mkdir()
    config = json.loads((TOY / "config.json").read_text("utf-8"))
    config |= {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    Path("large/config.json").write_text(json.dumps(config), "utf-8")
    words = [
        "train",
        "toy-arithmetic",
        "--set=model.name=large",
        "--set=model.precision=16bit",
    ]
    words += ["--set=grpo.max_completion_length=4096", "--set=schedule.prompts_per_step=64"]
    done = rig(*words)
    assert done.returncode == 1
    assert f"and the GPU has {total:.1f}" in done.stderr, done.stderr[-3000:]
    assert "suffice with --set schedule." in done.stderr
    knobs = re.findall(r"--set (\S+)", done.stderr)
    planned = rig(*words, "--plan", "--json", *(f"--set={knob}" for knob in knobs))
    assert json.loads(planned.stdout)["peak_gib"] <= total
