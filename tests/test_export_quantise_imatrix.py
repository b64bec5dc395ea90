"""Importance matrices, made, read and used: `pytest tests/test_export_quantise_imatrix.py`."""

from __future__ import annotations

import ctypes
import json
import struct
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from click.testing import CliRunner

from export import plan as export_plan
from export.checkpoint import source
from export.quantise import imatrix
from export.quantise.ggml import Floats
from export.quantise.quant_types import FILE_TYPES
from rig.cli import main
from rig.errors import RigError
from rig.model.gguf import read_header
from support import tiny_models, tiny_tokenizers
from support.gguf_files import tensors

ROOT = Path(__file__).resolve().parent.parent
GRIDS = ("IQ3_XXS", "IQ3_XS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ1_M", "IQ1_S")
"""Types whose lattices llama.cpp computes first, for 2 to 9 seconds each; IQ2_XXS takes one."""
REAL = Path(__file__).parent / "data/imatrix"
"""Made by llama-imatrix itself (`-c 256 --no-ppl`, both forms) of the toy and the text below."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "toy"
    return tiny_models.make(
        folder, "llama", num_hidden_layers=1, intermediate_size=256, dtype="F32"
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("\n".join(tiny_tokenizers.TEXT * 12), "utf-8")
    return path


@pytest.fixture(scope="module")
def f32(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f32") / "toy.gguf"
    export_plan.write_gguf_files(
        export_plan.plan_export(source.find_source(str(model))), {"F32": path}, threads=1
    )
    return path


def random_matrix(model: Path) -> imatrix.ImportanceMatrix:
    rng = np.random.default_rng(0)
    found = imatrix.ImportanceMatrix(datasets=["own.txt"], chunks=3)
    for part in export_plan.plan_export(source.find_source(str(model))).parts:
        if part.name.startswith("blk.") and len(part.shape) == 2:
            found.sums[part.name] = rng.random(part.shape[1], np.float32) * 100 + 1
            found.counts[part.name] = 1536
    return found


def quantise(f32: Path, out: Path, file_type: str, importance: dict[str, Floats]) -> Path:
    """`llama_model_quantize` of the installed library with the same matrix."""
    asked: Any = llama_cpp.llama_model_quantize_default_params()
    asked.ftype, asked.nthread = FILE_TYPES[file_type][0], 1
    kind = type(asked.imatrix)
    entries = (kind._type_ * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    asked.imatrix = ctypes.cast(entries, kind)
    code = llama_cpp.llama_model_quantize(str(f32).encode(), str(out).encode(), ctypes.byref(asked))
    assert code == 0
    return out


@pytest.mark.parametrize(
    "file_type",
    [
        *(
            "Q2_K_S",
            "Q2_K",
            "Q3_K_M",
            "Q4_0",
            "Q4_K_M",
            "IQ4_NL",
            "IQ4_XS",
            "Q5_K_M",
            "Q6_K",
            "IQ2_XXS",
        ),
        *(pytest.param(file_type, marks=pytest.mark.slow) for file_type in GRIDS),
    ],
)
def test_with_a_matrix_the_bytes_are_llama_cpps_too(
    model: Path, f32: Path, tmp_path: Path, file_type: str
) -> None:
    importance = random_matrix(model).mean_squares()
    plan = export_plan.plan_export(source.find_source(str(model)))
    ours = tmp_path / "ours.gguf"
    export_plan.write_gguf_files(plan, {file_type: ours}, importance=importance, threads=1)
    theirs = quantise(f32, tmp_path / "theirs.gguf", file_type, importance)
    assert tensors(ours) == tensors(theirs)


def test_a_matrix_changes_what_is_written(model: Path, tmp_path: Path) -> None:
    plan = export_plan.plan_export(source.find_source(str(model)))
    importance = random_matrix(model).mean_squares()
    bare = export_plan.write_gguf_files(plan, {"Q4_K_S": tmp_path / "bare.gguf"}, threads=1)
    weighed = export_plan.write_gguf_files(
        plan, {"Q4_K_S": tmp_path / "w.gguf"}, importance=importance, threads=1
    )
    assert bare[0].sha256 != weighed[0].sha256


def test_it_is_the_mean_square_of_what_flows_in(model: Path, f32: Path, text: Path) -> None:
    """Held against PyTorch: hooks on every linear layer, the same tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    found = imatrix.compute_imatrix(f32, text, threads=1)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode(text.read_text("utf-8"), add_special_tokens=False).ids
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    size = imatrix.CHUNK - 1
    chunks = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].double().pow(2).sum(dim=(0, 1))

        return hook

    for name, module in network.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(watch(name.rsplit(".", 1)[1]))
    with torch.inference_mode():
        for chunk in chunks:
            network(torch.tensor([[begin, *chunk]]))
    assert found.chunks == len(chunks)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    assert {f"blk.0.{name}.weight" for name in names.values()} == set(found.sums)
    for theirs, ours in names.items():
        wanted = sums[theirs].numpy()
        np.testing.assert_allclose(found.sums[f"blk.0.{ours}.weight"], wanted, rtol=1e-2)
        assert found.counts[f"blk.0.{ours}.weight"] == len(chunks) * imatrix.CHUNK


def test_it_is_written_and_read_back(model: Path, tmp_path: Path) -> None:
    matrix = random_matrix(model)
    imatrix.write_imatrix(matrix, tmp_path / "m.gguf")
    found = imatrix.read_imatrix(tmp_path / "m.gguf")
    assert (found.chunks, found.datasets, found.counts) == (3, ["own.txt"], matrix.counts)
    for name, sums in matrix.sums.items():
        np.testing.assert_array_equal(found.sums[name], sums)


def test_llama_cpps_older_binary_form_is_read(model: Path, tmp_path: Path) -> None:
    """Number of entries; name, calls, values each; then chunks and the data set's name."""
    matrix = random_matrix(model)
    raw = struct.pack("<i", len(matrix.sums))
    for name, sums in matrix.sums.items():
        means = (sums / matrix.counts[name] * 3).astype("<f4")
        raw += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, len(means))
        raw += means.tobytes()
    raw += struct.pack("<ii", 3, 7) + b"own.txt"
    (tmp_path / "m.dat").write_bytes(raw)
    assert not imatrix.is_text(tmp_path / "m.dat")
    found = imatrix.read_imatrix(tmp_path / "m.dat")
    assert (found.chunks, found.datasets) == (3, ["own.txt"])
    for name, values in matrix.mean_squares().items():
        np.testing.assert_allclose(found.mean_squares()[name], values, rtol=1e-5)


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_files_of_llama_imatrix_itself_are_read(
    name: str, model: Path, f32: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside rig's own matrix of the same text: other chunks, so alike and not equal."""
    found = imatrix.read_imatrix(REAL / name)
    assert not imatrix.is_text(REAL / name)
    assert (found.chunks, found.datasets) == (
        imatrix.read_imatrix(REAL / "imatrix.gguf").chunks,
        ["own.txt"],
    )
    own = imatrix.compute_imatrix(f32, text, threads=1).mean_squares()
    assert set(found.mean_squares()) == set(own)
    for tensor, values in found.mean_squares().items():
        other = imatrix.read_imatrix(REAL / "imatrix.gguf").mean_squares()[tensor]
        np.testing.assert_allclose(values, other, rtol=1e-5, err_msg=tensor)
        least = (
            0.999 if "attn_q" in tensor else 0.9
        )  # what flows into the first layer knows no chunks
        assert np.corrcoef(values, own[tensor])[0, 1] > least, tensor
    monkeypatch.chdir(tmp_path)
    command = ["export", str(model), "--gguf", "--quant", "Q2_K_S", "--no-check", "--imatrix"]
    done = CliRunner().invoke(main, [*command, str(REAL / name)])
    assert done.exit_code == 0, done.output
    theirs = quantise(f32, tmp_path / "theirs.gguf", "Q2_K_S", found.mean_squares())
    assert tensors(tmp_path / "toy-Q2_K_S.gguf") == tensors(theirs)


def test_columns_that_were_never_reached_count_alike(model: Path, tmp_path: Path) -> None:
    """As llama-quantize has it: a matrix with a count of zero weighs every column the same."""
    matrix = random_matrix(model)
    matrix.counts["blk.0.attn_q.weight"] = 0
    imatrix.write_imatrix(matrix, tmp_path / "m.gguf")
    found = imatrix.read_imatrix(tmp_path / "m.gguf").mean_squares()
    assert set(found["blk.0.attn_q.weight"]) == {1.0}


def test_a_matrix_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    matrix = random_matrix(model)
    matrix.sums["blk.0.ffn_down.weight"] = np.ones(77, np.float32)
    columns = {
        part.name: part.shape[-1]
        for part in export_plan.plan_export(source.find_source(str(model))).parts
    }
    with pytest.raises(RigError, match=r"of another model: it has 77 values for blk\.0\.ffn_down"):
        imatrix.refuse_other_model(matrix, columns, tmp_path / "m.gguf")


def test_a_matrix_that_is_not_finite_is_refused(model: Path, tmp_path: Path) -> None:
    matrix = random_matrix(model)
    matrix.sums["blk.0.attn_q.weight"][3] = np.inf
    columns = {
        part.name: part.shape[-1]
        for part in export_plan.plan_export(source.find_source(str(model))).parts
    }
    with pytest.raises(RigError, match="are not finite"):
        imatrix.refuse_other_model(matrix, columns, tmp_path / "m.gguf")


@pytest.mark.parametrize("raw", [b"\0\1\2", b"GGUF\3\0\0\0", struct.pack("<i", 5) + b"\0" * 9])
def test_damage_is_a_sentence(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(RigError, match="is no importance matrix, or damaged"):
        imatrix.read_imatrix(tmp_path / "m")


def test_the_command_computes_one_from_a_text_keeps_it_and_takes_it_again(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export", str(model), "--gguf", "--quant", "Q2_K_S,Q4_K_M", "--no-check", "--json"]
    first = CliRunner().invoke(main, [*command, "--imatrix", str(text)])
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["imatrix"] == "toy.imatrix.gguf"
    keys = read_header(tmp_path / "toy-Q2_K_S.gguf").metadata
    assert keys["quantize.imatrix.dataset"] == "own.txt"
    assert keys["quantize.imatrix.entries_count"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "toy-Q2_K_S.gguf", "toy-Q4_K_M.gguf", "toy.imatrix.gguf",
    ]  # fmt: skip
    again = CliRunner().invoke(main, [*command, "--imatrix", "toy.imatrix.gguf"])
    assert again.exit_code == 0, again.output
    assert [f["sha256"] for f in json.loads(again.stdout)["files"]] == [
        f["sha256"] for f in found["files"]
    ]


def toy_with(quants: str, *more: str) -> dict[str, Any]:
    """The check's figures by type, of the toy model with a matrix of the house's own README."""
    command = ["export", "toy", "--gguf", "--quant", quants, "--json", *more]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["check"]["files"]
    return {name[len("toy-") : -len(".gguf")]: figures for name, figures in files.items()}


@pytest.fixture
def own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.txt"
    path.write_text((ROOT / "README.md").read_text("utf-8")[:10_000], "utf-8")
    return path


def test_the_users_own_text_makes_a_real_model_better_and_low_types_possible(
    own_text: Path,
) -> None:
    without = toy_with("Q3_K_S")
    within = toy_with("Q3_K_S,Q2_K_S", "--imatrix", str(own_text))
    assert within["Q3_K_S"]["kl"] < 0.95 * without["Q3_K_S"]["kl"]
    assert 0 < within["Q3_K_S"]["kl"] < within["Q2_K_S"]["kl"]


@pytest.mark.slow
def test_every_type_that_needs_a_matrix_works_on_a_real_model(own_text: Path) -> None:
    """The fewer bits, the farther from 16; the library does not mind that the model is a toy."""
    names = ["IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"]
    found = toy_with(",".join(["IQ3_XS", *names]), "--imatrix", str(own_text))
    assert set(found) == {"IQ3_XS", *names}
    assert found["IQ3_XXS"]["kl"] < found["IQ2_XS"]["kl"] < found["IQ1_S"]["kl"]


def test_a_text_that_says_too_little_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Too little.", "utf-8")
    done = CliRunner().invoke(main, ["export", str(model), "--gguf", "--imatrix", "short.txt"])
    assert done.exit_code == 1
    assert "better some ten thousand of the kind of text" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
