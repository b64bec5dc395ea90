"""vLLM inside the training process, against a stand-in: `pytest tests/test_train_colocate.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")

from one_thread import one_thread  # noqa: E402, F401
from small_runs import start  # noqa: E402

from rig.errors import RigError  # noqa: E402
from rig.runs import Run  # noqa: E402
from train import backends, colocate, log, running  # noqa: E402
from train import recipe as recipes  # noqa: E402
from train.backends import EMBEDDED  # noqa: E402


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """vLLM's place in TRL taken by `standin_vllm`, and a CPU that claims to be good enough for it."""
    import standin_vllm
    from trl.generation import vllm_generation

    with monkeypatch.context() as patched:
        patched.setattr(vllm_generation, "is_vllm_available", lambda: True)
        patched.setattr(vllm_generation, "LLM", standin_vllm.LLM, raising=False)
        patched.setattr(
            vllm_generation, "SamplingParams", standin_vllm.SamplingParams, raising=False
        )
        limits = backends.limits
        patched.setattr(
            backends,
            "limits",
            lambda *words, **rest: [one for one in limits(*words, **rest) if "vllm" not in one],
        )
        yield standin_vllm.LLM


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """As if a process began and ended: TRL leaves its ranks in the environment for vLLM."""
    kept = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def run(name: str, *settings: str) -> None:
    """A small run, as in a process of its own."""
    with own_process():
        start("grpo.use_vllm=true", *settings, name=name)


def adapted() -> Any:
    """The embedded model in 16 bits with an adapter in 32 that has learnt something."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.bfloat16)
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            parameter.data += torch.randn_like(parameter) * 1e-3
    return model


def test_the_engine_is_given_every_weight_with_the_adapters_part() -> None:
    from transformers import AutoModelForCausalLM

    model = adapted()
    given = dict(colocate.weights(model))
    bare = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.bfloat16)
    own = dict(bare.named_parameters())
    assert given.keys() == own.keys()
    changed = {name for name in given if not torch.equal(given[name], own[name])}
    assert changed == {name for name in own if "norm" not in name and any(
        target in name for target in ("q_proj", "v_proj", "o_proj", "down_proj")
    )}  # fmt: skip
    exact = adapted().float().merge_and_unload()
    for name, weight in exact.named_parameters():
        assert torch.equal(given[name], weight.to(torch.bfloat16)), name


def test_the_models_own_weights_stay_where_trl_moves_them() -> None:
    from trl.generation.vllm_generation import VLLMGeneration

    model = adapted()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}

    def moved() -> list[str]:
        return [name for name, one in model.named_parameters() if not one.equal(before[name])]

    for _ in range(20):
        for _ in colocate.weights(model):
            pass
    assert moved() == []
    theirs = VLLMGeneration.__new__(VLLMGeneration)
    theirs.model = model
    theirs._dist = SimpleNamespace(gather_params=lambda _: contextlib.nullcontext(), is_fsdp=False)
    names = [name for name, _ in theirs._iter_named_params()]
    assert names == [name for name, _ in colocate.weights(model)]
    assert moved(), "TRL leaves the weights alone now: train/colocate.py can let it hand them over"


def test_a_run_learns_from_what_the_engine_says(standin: Any, elsewhere: Path) -> None:
    run("mine", "schedule.max_steps=3", "schedule.save_every=100")
    engine = standin.last
    assert (
        engine.options["max_model_len"]
        == 24 + recipes.load("embedded-arithmetic").data.max_prompt_length
    )
    assert engine.syncs == 3, "new weights before each step's completions"
    assert all(asked.max_tokens == 24 and not asked.ignore_eos for asked in engine.asked)
    rows = log.steps(Path("runs/mine/log.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3]
    for (
        row
    ) in rows:  # the model that learns gives each token the share that the engine drew it with
        ratio = row["sampling/importance_sampling_ratio/mean"]
        assert ratio == pytest.approx(1, abs=1e-3)
    from safetensors.torch import load_file

    learnt = load_file("runs/mine/adapter/adapter_model.safetensors")
    assert any(weight.any() for name, weight in learnt.items() if "lora_B" in name)


def test_the_seed_of_the_recipe_counts_although_the_engine_sets_its_own(
    standin: Any, elsewhere: Path
) -> None:
    for seed in (1, 2):
        run(str(seed), "schedule.max_steps=1", f"schedule.seed={seed}")
        assert standin.last.seeds == {seed}


def test_the_worst_case_runs_to_the_limit() -> None:
    coupling = SimpleNamespace(generation_kwargs={"best_of": 1}, max_completion_length=384)
    with colocate.to_the_limit(coupling):
        limit = {"ignore_eos": True, "min_tokens": 384}
        assert coupling.generation_kwargs == {"best_of": 1, **limit}
    assert coupling.generation_kwargs == {"best_of": 1}


def test_an_engine_that_does_not_start_is_a_sentence(
    standin: Any, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise ValueError("No available memory for the cache blocks.\nTry increasing it.")

    monkeypatch.setattr(standin, "__init__", no)
    with pytest.raises(
        RigError, match=r"No available memory for the cache blocks\. It may take 30%"
    ):
        run("mine")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], None),
        (["model.precision=4bit"], "model.precision=16bit"),
        (["model.revision=abc"], "give the folder as model.name"),
        (["backend.compile=true", "grpo.cache_implementation=static"], "backend.compile"),
    ],
)
def test_what_does_not_go_with_vllm_is_said_before_the_run(
    settings: list[str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    wanted = ["grpo.use_vllm=true", "model.precision=16bit", *settings]
    found = backends.limits(recipes.load("embedded-arithmetic", wanted), "trl", cuda=True)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_vllm_logs_beside_the_result_and_reports_nothing() -> None:
    script = (
        "import json, os; from train import colocate\n"
        "colocate.prepare(); print(json.dumps(dict(os.environ)))"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**bare, "VLLM_LOGGING_LEVEL": "INFO"},
    )
    found = json.loads(done.stdout)
    assert found["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    assert found["VLLM_NO_USAGE_STATS"] == "1"
    assert found["VLLM_LOGGING_LEVEL"] == "INFO", "what a person set stays"


def test_a_run_that_goes_on_says_what_it_would_have_said(standin: Any, elsewhere: Path) -> None:
    """With completions waiting in the checkpoint: two steps learn from one generation."""
    settings = ("schedule.steps_per_batch=2", "schedule.save_every=3")
    run("whole", *settings, "schedule.max_steps=4")
    with own_process():  # the second half finds the ranks of the first, as under a launcher
        start("grpo.use_vllm=true", *settings, "schedule.max_steps=3", name="half")
        running.resume(Run.open(Path("runs/half")), ("schedule.max_steps=4",), quiet=True)

    def learnt(name: str) -> list[Any]:
        keys = ("step", "loss", "reward", "grad_norm", "sampling/importance_sampling_ratio/mean")
        rows = log.steps(Path(f"runs/{name}/log.jsonl"))
        return [[row.get(key) for key in keys] for row in rows]

    assert learnt("half") == learnt("whole")
    adapters = [
        Path(f"runs/{name}/adapter/adapter_model.safetensors").read_bytes()
        for name in ("whole", "half")
    ]
    assert adapters[0] == adapters[1]
