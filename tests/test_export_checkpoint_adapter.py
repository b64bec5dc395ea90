"""Every kind of LoRA, worked in as PEFT computes it: `pytest tests/test_export_checkpoint_adapter.py`."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import plan as export_plan
from export.checkpoint import adapter as adapters
from export.checkpoint import source
from export.llama import LlamaModel
from rig.errors import RigError
from support import tiny_models

TOKENS = [3, 17, 200, 41, 7, 300, 12, 90, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    small: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 256, "dtype": "F32"}
    return {
        "untied": tiny_models.make(root / "untied", "llama", **small),
        "tied": tiny_models.make(root / "tied", "llama", tie_word_embeddings=True, **small),
        "biased": tiny_models.make(root / "biased", "qwen2", **small),
    }


def save_with_peft(base: Path, out: Path, **config: Any) -> Any:
    """A real PEFT adapter with random values everywhere it may learn; returns the model."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on tied tables and on biases, at length
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **given))
        for name, values in model.named_parameters():
            if values.requires_grad:
                middle = (
                    values.detach() if "magnitude" in name or "modules_to_save" in name else 0.0
                )
                values.data = middle + 0.03 * torch.randn_like(values)
        model.save_pretrained(out)
    return model.eval()


def logits_of_file(base: Path, adapter: Path | None, out: Path) -> Any:
    plan = export_plan.plan_export(source.find_source(str(base), adapter=adapter))
    export_plan.write_gguf_files(plan, {"F32": out}, threads=1)
    with LlamaModel(out, context=64, threads=1) as loaded:
        return loaded.compute_logits(TOKENS)


@pytest.mark.parametrize(
    ("base", "config"),
    [
        pytest.param("untied", {}, id="plain"),
        pytest.param(
            "untied",
            {"rank_pattern": {"v_proj": 2, r"layers\.1\..*q_proj": 6}, "alpha_pattern": {"q_proj": 24}},
            id="ranks and alphas by pattern",
        ),
        pytest.param("untied", {"use_rslora": True, "r": 9}, id="rank-stabilised: alpha over the root of r"),
        pytest.param("untied", {"use_dora": True, "target_modules": "all-linear"}, id="DoRA"),
        pytest.param("untied", {"target_modules": ["embed_tokens", "o_proj"]}, id="embeddings"),
        pytest.param("untied", {"target_modules": ["lm_head", "k_proj"]}, id="head"),
        pytest.param(
            "tied", {"target_modules": ["embed_tokens", "o_proj"]},
            id="tied embeddings: the head keeps the old table",
        ),
        pytest.param(
            "tied", {"target_modules": ["lm_head", "o_proj"]},
            id="tied head: the input keeps the old table",
        ),
        pytest.param(
            "untied", {"modules_to_save": ["embed_tokens", "lm_head"]}, id="both tables saved whole"
        ),
        pytest.param("untied", {"modules_to_save": ["norm"]}, id="the last norm saved whole"),
        pytest.param("tied", {"modules_to_save": ["embed_tokens"]}, id="tied, input table saved whole"),
        pytest.param("biased", {"bias": "all"}, id="biases trained"),
        pytest.param(
            "biased", {"lora_bias": True, "target_modules": ["q_proj", "k_proj", "v_proj"]},
            id="biases on B",
        ),
    ],
)  # fmt: skip
def test_the_file_computes_what_peft_computes(
    bases: dict[str, Path], tmp_path: Path, base: str, config: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    model = save_with_peft(bases[base], tmp_path / "adapter", **config)
    with torch.inference_mode():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    before = logits_of_file(bases[base], None, tmp_path / "base.gguf")
    got = logits_of_file(bases[base], tmp_path / "adapter", tmp_path / "model.gguf")
    scale = np.abs(wanted).max()
    assert np.abs(wanted - before).max() > 0.02 * scale  # the adapter does something
    assert np.abs(wanted - got).max() < 2e-3 * scale


def test_the_first_matching_pattern_decides_as_in_peft() -> None:
    config = {"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4, r".*\.q_proj": 2}}
    assert adapters.lora_scale(config, "model.layers.0.self_attn.q_proj") == 4.0
    assert adapters.lora_scale(config, "model.layers.0.self_attn.k_proj") == 2.0
    assert adapters.lora_scale({**config, "use_rslora": True}, "x.k_proj") == pytest.approx(
        16 / 8**0.5
    )


def test_rows_change_alike_however_they_are_cut(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_models.make_adapter(tmp_path / "adapter", bases["untied"], dora=True)
    change = adapters.load_adapter(folder).changes["model.layers.0.mlp.down_proj.weight"]
    whole = np.ones((256, 256), np.float32)
    change.apply_to_rows(whole, 0)
    for first in range(0, 256, 50):
        part = np.ones((min(50, 256 - first), 256), np.float32)
        change.apply_to_rows(part, first)
        np.testing.assert_allclose(part, whole[first : first + 50], rtol=1e-5)


def test_an_adapter_is_not_held_in_memory(bases: dict[str, Path], tmp_path: Path) -> None:
    """Its matrices are read when their turn comes, and only the last few are kept."""
    folder = tiny_models.make_adapter(tmp_path / "adapter", bases["untied"], rank=256)
    found = adapters.load_adapter(folder).changes
    size = (folder / "adapter_model.safetensors").stat().st_size
    tracemalloc.start()
    for name, change in found.items():
        change.apply_to_rows(
            np.zeros(tiny_models.read_shapes(bases["untied"])[name], np.float32), 0
        )
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < held < size / 2


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "IA3"}, "is a IA3 adapter; rig merges LORA"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base's own weights"),
        ({"layer_replication": [[0, 2]]}, "repeats layers of the base"),
        ({"use_qalora": True}, "is a QA-LoRA"),
        ({"alora_invocation_tokens": [1, 2]}, "switches on in mid-text"),
        ({"trainable_token_indices": [5]}, "trains single token embeddings"),
        ({"target_parameters": ["experts.gate"]}, "changes bare parameters"),
    ],
)
def test_what_cannot_be_merged_exactly_is_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    folder = tiny_models.make_adapter(tmp_path / "adapter", bases["untied"], **config)
    with pytest.raises(RigError, match=sentence):
        adapters.load_adapter(folder)


def test_an_adapter_of_another_size_is_refused_with_both_shapes(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    other = tiny_models.make(tmp_path / "other", "llama", hidden_size=128, intermediate_size=256)
    folder = tiny_models.make_adapter(tmp_path / "adapter", other)
    with pytest.raises(
        RigError, match=r"does not fit .* made for 128x256, the base has 256x256 .*other"
    ):
        export_plan.plan_export(source.find_source(str(bases["untied"]), adapter=folder))


def test_an_adapter_of_another_architecture_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    other = tiny_models.make(
        tmp_path / "other", "llama", num_hidden_layers=3, intermediate_size=256
    )
    folder = tiny_models.make_adapter(tmp_path / "adapter", other)
    with pytest.raises(RigError, match=r"layers\.2.*belongs to another model"):
        export_plan.plan_export(source.find_source(str(bases["untied"]), adapter=folder))


def test_an_adapter_of_another_family_is_refused_even_where_every_shape_fits(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = tiny_models.make_adapter(tmp_path / "adapter", bases["biased"])
    with pytest.raises(RigError, match=r"trained on .*biased, a Qwen2, and .*untied is a Llama"):
        source.find_source(str(bases["untied"]), adapter=folder)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    elsewhere = {**config, "base_model_name_or_path": str(tmp_path / "gone")}
    tiny_models.write_json(folder / "adapter_config.json", elsewhere)
    assert (
        source.find_source(str(bases["untied"]), adapter=folder).adapter == folder
    )  # cannot be known


def test_half_a_pair_is_damage(bases: dict[str, Path], tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tiny_models.write_adapter(tmp_path / "adapter", {name: np.ones((4, 256), np.float32)}, r=4)
    with pytest.raises(RigError, match="half of the LoRA pair"):
        adapters.load_adapter(tmp_path / "adapter")


def test_a_bias_on_b_needs_a_bias_in_the_base(bases: dict[str, Path], tmp_path: Path) -> None:
    at = "base_model.model.model.layers.0.self_attn.q_proj."
    pair = {
        at + "lora_A.weight": np.ones((4, 256), np.float32),
        at + "lora_B.weight": np.ones((256, 4), np.float32),
        at + "lora_B.bias": np.ones(256, np.float32),
    }
    tiny_models.write_adapter(tmp_path / "adapter", pair, r=4, lora_bias=True)
    with pytest.raises(RigError, match=r"q_proj\.bias, which the base does not have"):
        export_plan.plan_export(
            source.find_source(str(bases["untied"]), adapter=tmp_path / "adapter")
        )


def test_embeddings_saved_for_new_tokens_make_a_bigger_vocabulary(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """A training that added tokens saves both tables whole and its own tokenizer beside the adapter."""
    base = bases["untied"]
    folder = tiny_models.make_adapter(tmp_path / "adapter", base)
    rows = tiny_models.read_shapes(base)["lm_head.weight"][0]
    grown = rows + 5
    tensors = {
        "base_model.model.model.embed_tokens.weight": np.ones((grown, 256), np.float32),
        "base_model.model.lm_head.weight": np.ones((grown, 256), np.float32),
    }
    tiny_models.write_adapter(folder, tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    plan = export_plan.plan_export(source.find_source(str(base), adapter=folder))
    assert plan.model.vocabulary == grown
    assert len(plan.vocabulary.tokens) == grown
    assert plan.tokenizer == folder


@pytest.mark.parametrize(
    "name",
    [
        "grpo_llama31_8b_r32_unsloth",
        "grpo_qwen25_3b_r64_unsloth",
        "dpo_gemma3_1b_unsloth",
        "smollm2_17b_peft",
    ],
)
def test_real_adapter_configurations_are_understood(
    name: str, shared: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    """As unsloth and PEFT write them, target_modules as a regular expression among them."""
    real = json.loads(
        (shared / f"data/models/adapters/{name}/adapter_config.json").read_text("utf-8")
    )
    folder = tiny_models.make_adapter(tmp_path / "adapter", bases["untied"], rank=real["r"])
    tiny_models.write_json(folder / "adapter_config.json", real)
    found = adapters.load_adapter(folder)
    scales = {change.scale for change in found.changes.values()}
    expected = real["lora_alpha"] / (real["r"] ** 0.5 if real.get("use_rslora") else real["r"])
    assert scales == {expected}
    assert found.base == real["base_model_name_or_path"]
