"""What an adapter says, tensor by tensor: `pytest tests/test_export_checkpoint_adapter_borders.py`."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.checkpoint import adapter as adapters
from export.checkpoint.adapter import Adapter
from export.checkpoint.safetensors import StoredTensor, read_tensor
from rig.errors import RigError
from support import tiny_models

Numbers = NDArray[np.float32]
AT = "base_model.model.model.layers.0.self_attn.q_proj"
NAME = "model.layers.0.self_attn.q_proj.weight"


def numbers(*shape: int, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pair(at: str = AT, rows: int = 6, columns: int = 5, rank: int = 2) -> dict[str, Numbers]:
    return {
        f"{at}.lora_A.weight": numbers(rank, columns, seed=1),
        f"{at}.lora_B.weight": numbers(rows, rank, seed=2),
    }


def load(folder: Path, tensors: dict[str, Numbers], **config: Any) -> Adapter:
    tiny_models.write_adapter(folder, tensors, **config)
    return adapters.load_adapter(folder)


def base_tensor(name: str, *shape: int) -> StoredTensor:
    return StoredTensor(name, "F32", shape, Path("base.safetensors"), 0)


@pytest.mark.parametrize(
    ("layer", "ending"),
    [
        ("model.layers.0.self_attn.q_proj", ".lora_{}.weight"),
        ("model.layers.0.self_attn.q_proj", ".lora_{}.default.weight"),
        ("model.layers.0.self_attn.q_proj", ".lora_{}"),
        ("model.layers.0.self_attn.base_layer.q_proj", ".lora_{}.weight"),
        ("language_model.model.layers.0.self_attn.q_proj", ".lora_{}.weight"),
        ("model.language_model.layers.0.self_attn.q_proj", ".lora_{}.weight"),
    ],
)  # fmt: skip
def test_peft_s_ways_to_name_a_matrix_are_one(tmp_path: Path, layer: str, ending: str) -> None:
    at = f"base_model.model.{layer}"
    tensors = {at + ending.format("A"): numbers(2, 5), at + ending.format("B"): numbers(6, 2)}
    found = load(tmp_path / "adapter", tensors, r=2)
    assert list(found.changes) == [NAME]
    assert found.changes[NAME].rank == 2
    assert not found.changes[NAME].embedding


def test_rows_change_by_b_a_times_the_scale_wherever_they_begin(tmp_path: Path) -> None:
    tensors = pair()
    found = load(tmp_path / "adapter", tensors, r=2, lora_alpha=6).changes[NAME]
    whole = 3 * tensors[f"{AT}.lora_B.weight"] @ tensors[f"{AT}.lora_A.weight"]
    for first, last in ((0, 6), (2, 5)):
        rows = numbers(last - first, 5, seed=3)
        wanted = rows + whole[first:last]
        found.apply_to_rows(rows, first)
        assert rows == pytest.approx(wanted, abs=1e-5)


def test_an_embedding_s_matrices_lie_the_other_way(tmp_path: Path) -> None:
    at = "base_model.model.model.embed_tokens"
    tensors = {
        f"{at}.lora_embedding_A": numbers(2, 6),
        f"{at}.lora_embedding_B": numbers(5, 2, seed=1),
    }
    found = load(tmp_path / "adapter", tensors, r=2, lora_alpha=2)
    change = found.changes["model.embed_tokens.weight"]
    assert change.embedding
    rows = np.zeros((4, 5), np.float32)
    change.apply_to_rows(rows, 2)
    wanted = (tensors[f"{at}.lora_embedding_B"] @ tensors[f"{at}.lora_embedding_A"]).T[2:]
    assert rows == pytest.approx(wanted, abs=1e-5)
    name = "model.embed_tokens.weight"
    assert adapters.fit_to_base(found, {name: base_tensor(name, 6, 5)}, tied=False)
    with pytest.raises(RigError, match="made for 6x5, the base has 5x6"):
        adapters.fit_to_base(found, {name: base_tensor(name, 5, 6)}, tied=False)


def test_dora_gives_each_row_its_length(tmp_path: Path) -> None:
    tensors = pair() | {f"{AT}.lora_magnitude_vector": np.arange(1, 7, dtype=np.float32)}
    found = load(tmp_path / "adapter", tensors, r=2, use_dora=True).changes[NAME]
    rows = numbers(3, 5, seed=3)
    found.apply_to_rows(rows, 2)
    assert np.linalg.norm(rows, axis=1) == pytest.approx([3, 4, 5], rel=1e-5)


@pytest.mark.parametrize(
    ("vector", "table"),
    [("lora_magnitude_vector", True), ("lora_magnitude_vector.weight", False)],
)
def test_dora_on_embeddings_is_refused_and_on_layers_under_both_names_not(
    tmp_path: Path, vector: str, table: bool
) -> None:
    at = "base_model.model.model.embed_tokens" if table else AT
    tensors = {f"{at}.{vector}": np.ones(6, np.float32), **pair(at)}
    if table:
        with pytest.raises(RigError, match="DoRA on embeddings"):
            load(tmp_path / "adapter", tensors, r=2, use_dora=True)
    else:
        load(tmp_path / "adapter", tensors, r=2, use_dora=True)


def test_a_bias_is_scaled_and_added_to_its_own_rows(tmp_path: Path) -> None:
    bias = np.arange(6, dtype=np.float32)
    tensors = pair() | {f"{AT}.lora_B.bias": bias}
    found = load(tmp_path / "adapter", tensors, r=2, lora_alpha=6, lora_bias=True)
    change = found.changes[NAME.replace("weight", "bias")]
    rows = np.zeros((2, 1), np.float32)
    change.apply_to_rows(rows, 3)
    assert rows[:, 0].tolist() == [9, 12]
    assert change.rank == 0
    with pytest.raises(RigError, match=r"has a bias that PEFT does not know: .*lora_A"):
        load(tmp_path / "odd", pair() | {f"{AT}.lora_A.bias": bias}, r=2)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 2}, 0.5),
        ({}, 1.0),
        ({"r": 16}, 0.5),
        ({"lora_alpha": 16}, 2.0),
        ({"r": 16, "lora_alpha": 4, "use_rslora": True}, 1.0),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}}, 4.0),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"proj": 2}}, 1.0),
        ({"r": 8, "lora_alpha": 8, "alpha_pattern": {r"layers\.0\..*q_proj": 2}}, 0.25),
        ({"r": 8, "lora_alpha": 8, "alpha_pattern": {"k_proj": 2, "q_proj": 4, ".*": 1}}, 0.5),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": None}, 1.0),
        ({"r": 9, "lora_alpha": 9, "use_rslora": True, "rank_pattern": {"q_proj": 1}}, 9.0),
    ],
)  # fmt: skip
def test_the_scale_is_peft_s(config: dict[str, Any], scale: float) -> None:
    assert adapters.lora_scale(config, "model.layers.0.self_attn.q_proj") == scale
    assert math.isclose(
        adapters.lora_scale({"r": 2, "lora_alpha": 2, "use_rslora": 1}, "x"), 2**0.5
    )


@pytest.mark.parametrize("key", sorted(adapters.REFUSED))
def test_each_kind_that_is_refused_says_so_in_its_own_words(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(RigError, match=re.escape(f"{folder} {adapters.REFUSED[key]}")):
        load(folder, pair(), r=2, **{key: [1]})
    load(tmp_path / "empty", pair(), r=2, **{key: None})


def test_the_kinds_that_are_refused_are_peft_s_names() -> None:
    """Read as text: to import PEFT takes seconds."""
    found = importlib.util.find_spec("peft")
    if found is None or found.origin is None:
        pytest.skip("needs PEFT: pip install -e '.[train]'")
    text = (Path(found.origin).parent / "tuners/lora/config.py").read_text("utf-8")
    known = set(re.findall(r"^    (\w+):", text, re.MULTILINE))
    assert set(adapters.REFUSED) <= known


@pytest.mark.parametrize("start", ["pissa", "PiSSA_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_a_start_that_changed_the_base_is_refused(tmp_path: Path, start: str) -> None:
    with pytest.raises(RigError, match=f"started with '{start.lower()}', which changed the base"):
        load(tmp_path / "adapter", pair(), r=2, init_lora_weights=start)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_a_start_that_left_the_base_alone_is_not(tmp_path: Path, start: Any) -> None:
    load(tmp_path / "adapter", pair(), r=2, init_lora_weights=start)


def test_a_folder_that_is_none_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RigError, match=r"is not an adapter: it has no adapter_config\.json"):
        adapters.load_adapter(tmp_path)
    tiny_models.write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(RigError, match=r"has no adapter_model\.safetensors"):
        adapters.load_adapter(tmp_path)
    with pytest.raises(RigError, match="changes nothing"):
        load(tmp_path / "nothing", {})


def test_a_tensor_saved_whole_takes_the_base_s_place_under_its_name(tmp_path: Path) -> None:
    whole = numbers(3, 5)
    name = "model.norm.weight"
    saved = {"base_model.model.model.norm.modules_to_save.default.weight": whole}
    found = load(tmp_path / "adapter", saved)
    merged = adapters.fit_to_base(found, {name: base_tensor(name, 3, 5)}, tied=False)
    assert merged[name].name == name
    assert read_tensor(merged[name]).tolist() == whole.tolist()


@pytest.mark.parametrize("size", [5, 6, 7])
def test_vectors_fit_only_as_many_rows(tmp_path: Path, size: int) -> None:
    base = {NAME: base_tensor(NAME, 6, 5)}
    tensors = pair() | {f"{AT}.lora_magnitude_vector": np.ones(size, np.float32)}
    found = load(tmp_path / "adapter", tensors, r=2, use_dora=True)
    if size == 6:
        assert adapters.fit_to_base(found, base, tied=False) == base
        return
    with pytest.raises(RigError, match=f"made for {size} rows, the base has 6x5"):
        adapters.fit_to_base(found, base, tied=False)


def test_a_pair_of_two_ranks_fits_nothing(tmp_path: Path) -> None:
    tensors = pair()
    tensors[f"{AT}.lora_B.weight"] = numbers(6, 3)
    found = load(tmp_path / "adapter", tensors, r=2)
    with pytest.raises(RigError, match="does not fit"):
        adapters.fit_to_base(found, {NAME: base_tensor(NAME, 6, 5)}, tied=False)


@pytest.mark.parametrize(
    ("base", "said"), [("org/model", " (it was trained on org/model)"), ("", "")]
)
def test_what_does_not_belong_says_what_it_was_trained_on(
    tmp_path: Path, base: str, said: str
) -> None:
    found = load(tmp_path / "adapter", pair(), r=2, base_model_name_or_path=base)
    assert found.base == base
    with pytest.raises(RigError, match=re.escape(f"the base does not have{said}: it belongs")):
        adapters.fit_to_base(found, {}, tied=False)
    with pytest.raises(RigError, match=re.escape(f"made for 6x5, the base has 7x5{said}.")):
        adapters.fit_to_base(found, {NAME: base_tensor(NAME, 7, 5)}, tied=False)


@pytest.mark.parametrize("changed", ["model.embed_tokens", "lm_head", "both", "q_proj"])
@pytest.mark.parametrize("tied", [True, False])
def test_one_table_becomes_two_when_one_side_of_it_changes(
    tmp_path: Path, changed: str, tied: bool
) -> None:
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    layers = {"both": ["model.embed_tokens", "lm_head"], "q_proj": [NAME.removesuffix(".weight")]}
    saved = {
        f"base_model.model.{layer}.weight": numbers(6, 5, seed=at)
        for at, layer in enumerate(layers.get(changed, [changed]))
    }
    found = load(tmp_path / "adapter", saved)
    base = {table: base_tensor(table, 6, 5), NAME: base_tensor(NAME, 6, 5)}
    if not tied:
        base[head] = base_tensor(head, 6, 5)
    if changed == "both" and tied:
        with pytest.raises(RigError, match="does not have"):
            adapters.fit_to_base(found, base, tied=tied)
        return
    merged = adapters.fit_to_base(found, base, tied=tied)
    assert (head in merged) == (not tied or changed in ("model.embed_tokens", "lm_head"))
    if tied and changed == "model.embed_tokens":
        assert merged[head].path == base[table].path, "the other side stays as it was"
        assert merged[head].name == head
        assert merged[table].path != base[table].path
    if tied and changed == "lm_head":
        assert merged[table] == base[table]
        assert merged[head].path != base[table].path
