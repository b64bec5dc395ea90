"""The one pass against llama.cpp's own tools, byte for byte: `pytest tests/test_export_gguf_parity.py`.

`llama_model_quantize` of the installed library always takes part. llama.cpp's converter stands in
llama-cpp-python's source package: RIG_LLAMA_CPP names its `vendor/llama.cpp`; with CI set it is downloaded.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import platformdirs
import pytest
from conftest import SHARED

from export import lora_gguf
from export import plan as export_plan
from export.checkpoint import adapter as adapters
from export.checkpoint import source
from export.checkpoint.safetensors import folder_weights, read_tensor
from export.quantise.quant_types import FILE_TYPES
from support import tiny_models
from support.gguf_files import keys, tensors

Spec = tuple[str, dict[str, Any]]

OURS_ALONE = {
    "rig.version": "which rig made it",
    "rig.base": "what it was made from",
    "general.file_type": "the converter wrote F32, the quantiser would write its own",
    "tokenizer.ggml.add_bos_token": "always said by rig; the converter leaves some to a default",
    "tokenizer.ggml.add_eos_token": "the same",
    "tokenizer.ggml.eot_token_id": "further ends that generation_config.json lists",
    "tokenizer.ggml.eom_token_id": "the same",
}
"""Metadata that may differ from the converter's, and why."""

MODELS: dict[str, Spec] = {
    "llama-3-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-3.1-rope": ("llama", {"rope": tiny_models.LLAMA3_ROPE, "num_key_value_heads": 1}),
    "llama-3.2-rope-v5": (
        "llama",
        {"rope": tiny_models.LLAMA3_ROPE | {"rope_theta": 5e5, "factor": 32.0}, "head_dim": 128},
    ),
    "llama-linear": ("llama", {"rope": {"type": "linear", "factor": 4.0}, "dtype": "F16"}),
    "llama-yarn": (
        "llama",
        {"rope": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}},
    ),
    "llama-biased": ("llama", {"biases": True, "num_attention_heads": 8, "dtype": "F32"}),
    "llama-2-spm": ("llama", {"tokenizer": "spm", "num_key_value_heads": 4}),
    "llama-sharded": ("llama", {"shards": 3, "num_hidden_layers": 3, "intermediate_size": 256}),
    "llama-odd": ("llama", {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3,
                            "num_key_value_heads": 1}),
    "smollm2": ("llama", {"tokenizer": "smollm", "tie_word_embeddings": True, "num_attention_heads": 2,
                          "num_key_value_heads": 1}),
    "mistral": ("mistral", {"num_key_value_heads": 1}),
    "mistral-head-dim": ("mistral", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("qwen2", {"num_attention_heads": 8, "num_key_value_heads": 8}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "head_dim": 128}),
    "qwen3-v5": ("qwen3", {"rope": {"rope_type": "default", "rope_theta": 1e6}}),
    "gemma3": ("gemma3", {"num_key_value_heads": 1, "head_dim": 128}),
    "gemma3-linear": ("gemma3", {"rope": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3-multimodal": ("gemma3", {"multimodal": True}),
}  # fmt: skip
RARER = (
    "llama-3-tied", "llama-linear", "llama-yarn", "llama-2-spm", "mistral-head-dim", "qwen2-untied",
    "qwen3-v5", "gemma3-linear",
)  # fmt: skip
"""Left to the full-length run, `pytest -m slow`."""
PRE = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
NEED_IMPORTANCE = (
    "IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
TAUGHT = ("llama-3.1-rope", "llama-biased", "qwen2", "qwen3", "gemma3", "mistral")
REACHED = re.compile(r"(attn_[qkv]|attn_output|ffn_gate|ffn_down)\.weight")
SOME = ("F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q5_K_S", "IQ4_XS")


def marked(names: Iterable[str], slow: Iterable[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.fixture(scope="session")
def sources() -> Path:
    """llama.cpp's sources of the very revision that is installed."""
    if named := os.environ.get("RIG_LLAMA_CPP"):
        return Path(named)
    release = version("llama-cpp-python")
    kept = Path(platformdirs.user_cache_dir("rig", appauthor=False)) / f"llama-cpp-{release}"
    if not (kept / "convert_hf_to_gguf.py").is_file():
        if not os.environ.get("CI"):
            pytest.skip(
                "needs llama.cpp's converter from llama-cpp-python's source package: set "
                "RIG_LLAMA_CPP to its vendor/llama.cpp, or CI=1 to download it once"
            )
        download(release, kept)
    return kept


def download(release: str, kept: Path) -> None:
    """Fetch the source package with pip, and keep the four folders that convert."""
    folder = kept.with_name(f"{kept.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    wanted = ["--no-deps", "--no-binary", ":all:", f"llama-cpp-python=={release}"]
    subprocess.run([*pip, *wanted, "--dest", str(folder)], check=True, timeout=280)
    (archive,) = folder.glob("*.tar.gz")
    inner = "vendor/llama.cpp/"
    with tarfile.open(archive) as package:
        for member in package:
            _, found, path = member.name.partition(inner)
            if found and path.startswith(("conversion/", "gguf-py/gguf/", "convert_")):
                member.name = path
                package.extract(member, folder, filter="data")
    archive.unlink()
    shutil.rmtree(kept, ignore_errors=True)
    folder.rename(kept)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All toy models, made once."""
    root = tmp_path_factory.mktemp("models")
    return {name: build(root / name, *spec) for name, spec in MODELS.items()}


def build(folder: Path, family: str, given: dict[str, Any]) -> Path:
    given = dict(given)
    multimodal = given.pop("multimodal", False)
    tiny_models.make(folder, family, **given)
    if (
        multimodal
    ):  # as Gemma 3 4B lies on the hub: text tensors under language_model, a vision tower
        config = json.loads((folder / "config.json").read_text("utf-8"))
        text = {**config, "architectures": None, "model_type": "gemma3_text"}
        whole: dict[str, Any] = {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
        }
        whole |= {"text_config": text, "vision_config": {"num_hidden_layers": 1}}
        tiny_models.write_json(folder / "config.json", whole)
        shapes = tiny_models.shapes(config, family, biases=False)
        tensors = tiny_models.weights(config, family, 0, False)
        named = {f"language_model.{name}": tensors[name] for name in shapes}
        named["vision_tower.vision_model.embeddings.patch_embedding.bias"] = np.ones(4, np.float32)
        named["multi_modal_projector.mm_input_projection_weight"] = np.ones((4, 4), np.float32)
        tiny_models.write_weights(folder, named, "BF16")
    return folder


@pytest.fixture(scope="session")
def adapters_of(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A LoRA for some of the toys, moving weights by a percent or so, as training does."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: tiny_models.make_adapter(
            root / name,
            models[name],
            targets="(q|k|v|o|gate|down)_proj",
            size=0.01,
            rank_pattern={"v_proj": 4},
            alpha_pattern={"q_proj": 12},
        )
        for name in TAUGHT
    }


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real tokenizers and configurations around one thin random layer."""
    if not SHARED.is_dir():
        return {}
    root, given = tmp_path_factory.mktemp("real"), SHARED / "data/models"
    llama = root / "Llama-3.2-1B-Instruct"
    shutil.copytree(given / "Llama-3.2-1B-Instruct", llama)
    unpack(given / "llama-3.1-tokenizer/tokenizer.json.gz", llama)
    smollm = root / "SmolLM2-1.7B-Instruct"
    shutil.copytree(given / "smollm2-tokenizer", smollm)
    unpack(given / "smollm2-tokenizer/tokenizer.json.gz", smollm)
    config = json.loads((given / "SmolLM2-360M/config.json").read_text("utf-8"))
    tiny_models.write_json(smollm / "config.json", config | {"vocab_size": 49152})
    return {"llama": thin(llama), "smollm": thin(smollm)}


@pytest.fixture(scope="session")
def converted(
    sources: Path,
    models: dict[str, Path],
    adapters_of: dict[str, Path],
    real: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> dict[str, Path]:
    """The converter's F32 file of every toy, every float32 merge, every real tokenizer, in one process."""
    folder = tmp_path_factory.mktemp("converted")
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {call.params.get("name") for call in calls if call is not None}
    jobs = [(models[name], name, pre_tokenizer(name)) for name in models if name in asked]
    for name, adapter in adapters_of.items():
        if name not in asked:
            continue
        merged = merge_with_torch(models[name], adapter, folder / name)
        jobs.append((merged, f"{name}+adapter", pre_tokenizer(name)))
    # no answer is given for the real ones: the converter finds the pre-tokenizer by its own hash
    jobs += [(path, f"real-{name}", None) for name, path in real.items()]
    listed = folder / "jobs.json"
    tiny_models.write_json(listed, [[str(a), str(folder / f"{b}.gguf"), pre] for a, b, pre in jobs])
    script = Path(__file__).parent / "support" / "upstream_converter.py"
    command = [sys.executable, str(script), str(sources), str(listed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: folder / f"{name}.gguf" for _, name, _ in jobs}


def pre_tokenizer(name: str) -> str | None:
    """What the converter would find for the real tokenizer; its table cannot know a toy's."""
    family, given = MODELS[name]
    kind = given.get("tokenizer", family)
    return None if kind == "spm" else "smollm" if kind == "smollm" else PRE.get(family)


def ours(folder: Path, out: Path, types: Iterable[str], **more: Any) -> dict[str, Path]:
    """Files of the one pass."""
    plan = export_plan.plan_export(source.find_source(str(folder), **more))
    files = {file_type: out / f"ours-{file_type}.gguf" for file_type in types}
    export_plan.write_gguf_files(plan, files, threads=1)
    return files


def quantise(model: Path, out: Path, file_type: str) -> Path:
    """What `llama_model_quantize` of the installed library makes of an F32 file."""
    asked: Any = llama_cpp.llama_model_quantize_default_params()
    asked.ftype, asked.nthread = FILE_TYPES[file_type][0], 1
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    path = out / f"theirs-{file_type}.gguf"
    assert not llama_cpp.llama_model_quantize(
        str(model).encode(), str(path).encode(), ctypes.byref(asked)
    )
    return path


def same_keys(ours: Path, converters: Path) -> None:
    mine, theirs = keys(ours), keys(converters)
    assert not set(theirs) - set(mine)
    differing = {key for key in mine if mine[key] != theirs.get(key)}
    assert differing <= set(OURS_ALONE), {k: (mine[k], theirs.get(k)) for k in differing}


# ----------------------------------------------------------------------------------------------------------
# Without the converter: our F32 file is the start, the installed library makes the rest


@pytest.mark.parametrize("name", ["llama-3.1-rope", "llama-odd"])
def test_every_type_has_the_bytes_that_llama_model_quantize_writes(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """All types that need no importance matrix; `llama-odd` falls back to other formats everywhere."""
    types = [t for t in FILE_TYPES if t not in NEED_IMPORTANCE]
    files = ours(models[name], tmp_path, types)
    for file_type in types:
        theirs = quantise(files["F32"], tmp_path, file_type)
        assert tensors(files[file_type]) == tensors(theirs), file_type
        assert keys(files[file_type]) == keys(theirs), file_type
        assert list(tensors(files[file_type])) == list(tensors(theirs))  # the order too


def test_threads_do_not_change_a_byte(models: dict[str, Path], tmp_path: Path) -> None:
    plan = export_plan.plan_export(source.find_source(str(models["llama-3-tied"])))
    made = [
        export_plan.write_gguf_files(
            plan, {"Q4_K_M": tmp_path / f"{threads}.gguf"}, threads=threads
        )[0]
        for threads in (1, 2, 5)
    ]
    assert len({one.sha256 for one in made}) == 1


# ----------------------------------------------------------------------------------------------------------
# With the converter


@pytest.mark.parametrize("name", marked(MODELS, RARER))
def test_the_files_are_the_converters_and_the_quantisers(
    models: dict[str, Path], converted: dict[str, Path], tmp_path: Path, name: str
) -> None:
    files = ours(models[name], tmp_path, SOME)
    for file_type in SOME:
        theirs = converted[name]
        if file_type != "F32":
            theirs = quantise(converted[name], tmp_path, file_type)
        assert tensors(files[file_type]) == tensors(theirs), file_type
    same_keys(files["F32"], converted[name])


@pytest.mark.parametrize("name", marked(TAUGHT, ("llama-biased", "qwen2", "qwen3", "mistral")))
def test_with_an_adapter_it_is_the_float32_merge_then_the_converter_then_the_quantiser(
    models: dict[str, Path],
    adapters_of: dict[str, Path],
    converted: dict[str, Path],
    tmp_path: Path,
    name: str,
) -> None:
    """Byte for byte where the adapter does not reach, at least 99.9% where it does."""
    merged = converted[f"{name}+adapter"]
    types = [*SOME, "Q2_K", "Q3_K_L", "Q4_0", "Q6_K"]
    files = ours(models[name], tmp_path, types, adapter=adapters_of[name])
    bare = ours(models[name], tmp_path / "bare", types)
    for file_type in types:
        theirs = tensors(merged if file_type == "F32" else quantise(merged, tmp_path, file_type))
        mine, before = tensors(files[file_type]), tensors(bare[file_type])
        assert {k: v[0] for k, v in mine.items()} == {k: v[0] for k, v in theirs.items()}
        for tensor, (_, data) in mine.items():
            if REACHED.search(tensor):
                assert alike(data, theirs[tensor][1]) >= 0.999, (file_type, tensor)
                assert alike(data, before[tensor][1]) < 0.99, (file_type, tensor)
            else:
                assert data == theirs[tensor][1] == before[tensor][1], (file_type, tensor)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3.1-rope", "qwen2", "gemma3"])
def test_the_adapter_alone_has_the_bytes_of_convert_lora_to_gguf(
    models: dict[str, Path], sources: Path, tmp_path: Path, name: str
) -> None:
    """With one rank and one alpha; the script writes the same product otherwise, but not the same factors."""
    taught = tiny_models.make_adapter(tmp_path / "taught", models[name])
    mine = lora_gguf.write_lora_gguf(
        export_plan.plan_export(source.find_source(str(taught))), tmp_path / "mine.gguf"
    ).path
    script, theirs = sources / "convert_lora_to_gguf.py", tmp_path / "theirs.gguf"
    words = [taught, "--base", models[name], "--outtype", "f32", "--outfile", theirs]
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(sources / "gguf-py")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert tensors(mine) == tensors(theirs)
    assert {key: value for key, value in keys(theirs).items() if keys(mine).get(key) != value} == {
        "general.name": "Taught"
    }


def merge_with_torch(model: Path, adapter: Path, out: Path) -> Path:
    """PEFT's arithmetic in float32 on the same folder: W + (alpha / r) B A."""
    torch = pytest.importorskip("torch")
    shutil.copytree(model, out)
    changes = adapters.load_adapter(adapter).changes
    merged = {}
    for name, tensor in folder_weights(model).items():
        values = torch.from_numpy(read_tensor(tensor))
        change = changes.get(name)
        if change is not None and change.a is not None and change.b is not None:
            product = torch.from_numpy(read_tensor(change.b)) @ torch.from_numpy(
                read_tensor(change.a)
            )
            values = values + product * change.scale
        merged[name] = values.numpy()
    for path in out.glob("*.safetensors*"):
        path.unlink()
    tiny_models.write_weights(out, merged, "F32")
    return out


def alike(one: bytes, other: bytes) -> float:
    """Share of equal bytes."""
    left, right = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    return float(np.mean(left == right))


# ----------------------------------------------------------------------------------------------------------
# Real tokenizers and configurations


def unpack(packed: Path, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))


def thin(folder: Path) -> Path:
    """One layer, 64 wide: the rest of the configuration stays as it is."""
    path = folder / "config.json"
    path.chmod(0o644)
    config = json.loads(path.read_text("utf-8"))
    config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 1}
    tiny_models.write_json(path, config)
    tiny_models.write_weights(folder, tiny_models.weights(config, "llama", 0, False), "BF16")
    return folder


@pytest.mark.parametrize("which", ["llama", "smollm"])
def test_real_tokenizers_give_the_converters_metadata(
    which: str, real: dict[str, Path], converted: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    theirs = converted[f"real-{which}"]
    mine = ours(real[which], tmp_path, ["F32"])["F32"]
    same_keys(mine, theirs)
    assert tensors(mine) == tensors(theirs)
