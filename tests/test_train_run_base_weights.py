"""An adapter stays with the weights it was taught on: `pytest tests/test_train_run_base_weights.py`."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

import rig.cli
from rig.errors import RigError
from rig.model import base_weights
from rig.model.reply_format import TAUGHT
from rig.model.toy import toy_folder as toy
from rig.runs import Run
from support.one_thread import one_thread  # noqa: F401
from train import recipe as recipes
from train import run


def weights(path: Path, *tensors: tuple[str, bytes]) -> Path:
    """A safetensors file of bytes."""
    head, at = {}, 0
    for name, data in tensors:
        head[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    body = b"".join(data for _, data in tensors)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path.parent


@pytest.mark.parametrize("whole", [64 * 2**20, 0], ids=["small file", "large file"])
def test_the_same_weights_have_one_fingerprint_and_others_another(
    tmp_path: Path, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_weights, "WHOLE", whole)
    big, small = bytes(range(256)) * 4096, b"norm"
    file = tmp_path / "model.safetensors"
    first = base_weights.fingerprint_weights(weights(file, ("a", big), ("b", small)))
    assert first == base_weights.fingerprint_weights(weights(file, ("a", big), ("b", small)))
    others = {
        base_weights.fingerprint_weights(
            weights(file, ("a", big[::-1]), ("b", small))
        ),  # fine-tuned
        base_weights.fingerprint_weights(
            weights(file, ("a", big), ("b", b"morn"))
        ),  # one small tensor
        base_weights.fingerprint_weights(weights(file, ("a", big), ("c", small))),  # another name
        base_weights.fingerprint_weights(weights(file, ("a", big[:-1] + b"?"), ("b", small)))
        if whole
        else "",
    }
    assert len(others) == 4
    assert first not in others


def test_the_files_of_the_index_count_and_no_others(tmp_path: Path) -> None:
    assert base_weights.fingerprint_weights(tmp_path) is None, (
        "a model without safetensors has no fingerprint"
    )
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"):
        weights(tmp_path / name, ("a", name.encode()))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / base_weights.INDEX).write_text(json.dumps(index), "utf-8")
    found = base_weights.fingerprint_weights(tmp_path)
    (tmp_path / "consolidated.safetensors").unlink()
    assert base_weights.fingerprint_weights(tmp_path) == found
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(RigError, match=r"model-2\.safetensors is damaged"):
        base_weights.fingerprint_weights(tmp_path)
    (tmp_path / base_weights.INDEX).write_text("{", "utf-8")
    with pytest.raises(RigError, match="download it again"):
        base_weights.fingerprint_weights(tmp_path)


def test_a_header_that_lies_about_its_length_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_weights, "WHOLE", 0)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(RigError, match="longer than the file"):
        base_weights.fingerprint_weights(tmp_path)


@pytest.fixture
def run_on_a_changed_base(elsewhere: Path) -> Run:
    """A run whose base was fine-tuned after it: one number of one tensor."""
    model = elsewhere / "base"
    shutil.copytree(toy(), model)
    chosen = recipes.load_recipe(
        "toy-arithmetic",
        [f"model.name={model}", "data.limit=24", "data.held_out=4", "grpo.num_generations=4",
         "schedule.prompts_per_step=2", "schedule.micro_batch=4", "grpo.max_completion_length=8"],
    )  # fmt: skip
    run = Run.create(elsewhere / "mine", recipe=recipes.to_toml(chosen), base=str(model))
    from peft import LoraConfig, get_peft_model

    from train.model import backends

    loaded, tokenizer = backends.load_for_inference(chosen.model.name)
    get_peft_model(loaded, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        str(run.adapter_folder)
    )
    tokenizer.save_pretrained(str(run.adapter_folder))
    TAUGHT.save_to(run.adapter_folder)
    run.update_record("trained", base_weights=base_weights.fingerprint_weights(model))
    base_weights.check_base_weights(run, model)
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    return run


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "mine", "--n", "1", "--max-tokens", "2"],
        ["export", "mine", "--gguf", "--quant", "Q8_0", "--no-check"],
        ["export", "mine", "--check"],
    ],
    ids=" ".join,
)
def test_another_base_is_refused_with_a_sentence(
    run_on_a_changed_base: Run, command: list[str]
) -> None:
    done = CliRunner().invoke(rig.cli.main, command)
    assert done.exit_code == 1, done.output
    assert "are not those that" in " ".join(done.stderr.split())
    assert not list(run_on_a_changed_base.path.glob("*.gguf"))


def test_a_run_does_not_go_on_with_another_base(run_on_a_changed_base: Run) -> None:
    run_on_a_changed_base.update_record("training")
    with pytest.raises(RigError, match="its adapter fits no others"):
        run.resume_run(run_on_a_changed_base, quiet=True)


def test_a_run_that_noted_no_weights_passes(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "old", recipe="", base="toy")
    base_weights.check_base_weights(run, toy())


def test_a_base_that_is_named_is_the_persons_own_choice(run_on_a_changed_base: Run) -> None:
    from export.checkpoint import source

    named = run_on_a_changed_base.base_model
    assert source.find_source(str(run_on_a_changed_base.path), base=named).folder == Path(named)
