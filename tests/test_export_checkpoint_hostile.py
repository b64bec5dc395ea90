"""Model folders made to hurt end in one sentence, and nothing outside them is read."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from export import plan
from export.checkpoint.adapter import lora_scale
from export.checkpoint.source import find_source
from rig.errors import RigError
from rig.model.foreign import read_json_object

CORPUS = Path(__file__).parent / "data" / "corpus"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    whole = json.loads(path.read_text("utf-8"))
    change(whole)
    path.write_text(json.dumps(whole), "utf-8")


def put(name: str, text: str | bytes) -> Callable[[Path], object]:
    raw = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(raw)


def config(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", lambda whole: whole.update(values))


def tokenizer(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "tokenizer.json", lambda whole: whole.update(values))


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        size = int.from_bytes(raw[:8], "little")
        whole = json.loads(raw[8 : 8 + size])
        change(whole)
        head = json.dumps(whole).encode()
        data = struct.pack("<Q", len(head)) + head + raw[8 + size :]
        (folder / "model.safetensors").write_bytes(data)

    return make


def index(shard: object) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        shutil.move(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
        names = {"weight_map": {"model.norm.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(names), "utf-8")

    return make


def pipe(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


NORM = "model.norm.weight"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a header nested for ever": (
        put("model.safetensors", struct.pack("<Q", 300_000) + b'{"a":' * 60_000), "makes no sense"
    ),
    "a header as long as a disk": (put("model.safetensors", b"\xff" * 7 + b"\x7f{}"), "cut off"),
    "two tensors in one place": (
        header(lambda h: h.update({"again": dict(h[NORM])})), "begins at byte"
    ),
    "a hole between tensors": (header(lambda h: h.pop(NORM)), "begins at byte"),
    "a place of half bytes": (header(lambda h: h[NORM].update(data_offsets=[0.0, 32.0])), "lacks a type"),
    "an infinite side": (header(lambda h: h[NORM].update(shape=[float("inf")])), "lacks a type"),
    "nine sides": (header(lambda h: h[NORM].update(shape=[1] * 8 + [16])), "no shape or place"),
    "a tensor that is a text": (header(lambda h: h.update({NORM: "x"})), "no entry of a header"),
    "a shard above": (index("../elsewhere.safetensors"), "outside its folder"),
    "a shard far above": (index("sub/../../elsewhere.safetensors"), "outside its folder"),
    "a shard anywhere": (index("/etc/hostname"), "outside its folder"),
    "a shard on another drive": (index("C:\\model.safetensors"), "outside its folder"),
    "a shard that is a number": (index(7), "outside its folder"),
    "a shard in a list": (index(["a"]), "outside its folder"),
    "a shard with a name too long": (index("a" * 400), "lacks 1 of its 1 weight files"),
    "a list for an index": (put("model.safetensors.index.json", "[]"), "no JSON object"),
    "a configuration that is a pipe": (pipe("config.json"), "no model to export"),
    "a tokenizer that is a pipe": (pipe("tokenizer.json"), "a pipe or a device"),
    "a card that is a pipe": (pipe("README.md"), "a pipe or a device"),
    "a card that grows": (
        put("README.md", "---\na: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
        ) + "tags: *j\n---\n"), "says too much",
    ),
    "a card that is no YAML": (put("README.md", "---\na: [\n---\n"), "head that can't be read"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads"),
    "heads that don't divide": (config(num_attention_heads=3, num_key_value_heads=2), "no model"),
    "a name for an architecture": (config(architectures="LlamaForCausalLM"), "architectures"),
    "a wide context": (config(max_position_embeddings=2**40), "max_position_embeddings"),
    "positions stretched by nothing": (
        config(rope_scaling={"rope_type": "llama3", "factor": 0}), "rope_scaling.factor"
    ),
    "positions stretched backwards": (
        config(rope_scaling={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                                "low_freq_factor": 4.0, "high_freq_factor": 1.0}), "no range",
    ),
    "an end that is an object": (config(eos_token_id={}), "eos_token_id"),
    "ends of all kinds": (put("generation_config.json", '{"eos_token_id": ["x", -7]}'), "eos_token_id"),
    "a temperature beyond numbers": (put("generation_config.json", '{"temperature": 1e300}'), "temperature"),
    "a token below nothing": (
        lambda f: edit(f / "tokenizer.json", lambda t: t["model"]["vocab"].update(zzz=-1)), "vocab.zzz"
    ),
    "a token beyond the table": (
        lambda f: edit(f / "tokenizer.json", lambda t: t["model"]["vocab"].update(zzz=99_999)),
        "knows token 99999",
    ),
    "a tokenizer without a model": (put("tokenizer.json", '{"added_tokens": []}'), "nameless tokenizer"),
    "a pattern that never ends": (
        tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}),
        "no name for",
    ),
    "a replacement that grows": (
        tokenizer(normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 40}] * 9}), "far longer",
    ),
    "steps that are a word": (tokenizer(pre_tokenizer={"pretokenizers": "x"}), "makes no sense"),
    "a step that is a list": (tokenizer(pre_tokenizer=[1]), "no object"),
    "merges of three": (
        lambda f: edit(f / "tokenizer.json", lambda t: t["model"].update(merges=["a b c"])), "is damaged"
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CORPUS / "model", tmp_path / "model"))


def export(folder: Path) -> None:
    made = plan.plan_export(find_source(str(folder)))
    plan.write_gguf_files(made, {"F16": folder.parent / "out.gguf"}, threads=1)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_folder_is_refused_with_a_sentence(folder: Path, hostile: str) -> None:
    make, says = HOSTILE[hostile]
    make(folder)
    with pytest.raises(click.ClickException, match=re.escape(says)):
        export(folder)
    assert not (folder.parent / "out.gguf").exists()


def test_a_pipe_for_an_index_is_no_index(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors.index.json")
    export(folder)
    assert (folder.parent / "out.gguf").is_file()


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_never_ends_does_not_match_for_ever(key: str) -> None:
    module = "model.layers.0.self_attn.q_proj" + ".x" * 40
    config = {"r": 8, "lora_alpha": 16, key: {r"(.*)(.*)(.*)(.*)(.*)(.*)\3\4\5\6\7\8[^.x]": 4}}
    with pytest.raises(RigError, match=r"takes longer than 1 s to match"):
        lora_scale(config, module)


def test_a_pattern_that_is_none_is_named() -> None:
    with pytest.raises(RigError, match=r"\(\(', which is no pattern"):
        lora_scale({"rank_pattern": {"((": 4}}, "q_proj")


def test_the_weights_that_llama_cpp_would_not_take_are_refused_before_they_are_written(
    folder: Path,
) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    whole = json.loads(raw[8 : 8 + size])
    end = max(entry["data_offsets"][1] for name, entry in whole.items() if name != "__metadata__")
    whole["model.layers.0.self_attn.q_proj.bias"] = {
        "dtype": "BF16", "shape": [5], "data_offsets": [end, end + 10],
    }  # fmt: skip
    head = json.dumps(whole).encode()
    data = struct.pack("<Q", len(head)) + head + raw[8 + size :] + b"\0" * 10
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(RigError, match=r"attn_q\.bias is 5 in the weights but 16"):
        plan.plan_export(find_source(str(folder)))


def test_a_file_larger_than_any_of_its_kind_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    os.truncate(path, 2**40)
    with pytest.raises(RigError, match=r"config\.json has 1,099,511,627,776 bytes, more than any"):
        read_json_object(path)
