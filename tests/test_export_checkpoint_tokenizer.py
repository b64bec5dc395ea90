"""The same tokens from the file as from the model: `pytest tests/test_export_checkpoint_tokenizer.py`."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export import plan as export_plan
from export.checkpoint import source, tokenizer, tokenizer_files
from export.llama import LlamaModel
from export.verify.tokens import sample_texts
from rig.errors import RigError
from support import tiny_models, tiny_tokenizers

KINDS = {
    "llama": ("llama", "llama-bpe"),
    "qwen2": ("qwen2", "qwen2"),
    "smollm": ("llama", "smollm"),
    "spm": ("mistral", "default"),
    "spm-json": ("mistral", "default"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A model folder and its GGUF for every kind of tokenizer."""
    root = tmp_path_factory.mktemp("kinds")
    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    found = {}
    for kind, (family, _) in KINDS.items():
        folder = tiny_models.make(root / kind, family, tokenizer=kind, **small)
        plan = export_plan.plan_export(source.find_source(str(folder)))
        export_plan.write_gguf_files(plan, {"F16": root / f"{kind}.gguf"}, threads=1)
        found[kind] = folder, root / f"{kind}.gguf"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_becomes_the_same_tokens(files: dict[str, tuple[Path, Path]], kind: str) -> None:
    folder, path = files[kind]
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*sample_texts(), *tiny_tokenizers.TEXT]
    with LlamaModel(path, vocabulary=True) as ours:
        for text in texts:
            for add in (False, True):
                wanted = theirs.encode(text, add_special_tokens=add).ids
                assert ours.tokenize_text(text, add=add) == wanted, (text, add)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "smollm", "spm-json"])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.sampled_from("aZ '.,!?0123\n\t -_é漢🚀sтdм"), max_size=40))
def test_any_text_becomes_the_same_tokens(
    files: dict[str, tuple[Path, Path]], kind: str, text: str
) -> None:
    folder, path = files[kind]
    wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(
        text, add_special_tokens=False
    )
    with LlamaModel(path, vocabulary=True) as ours:
        assert ours.tokenize_text(text) == wanted.ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_pre_tokenizer_is_known_by_what_it_does(
    files: dict[str, tuple[Path, Path]], kind: str
) -> None:
    folder, _ = files[kind]
    size = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    assert tokenizer.load_vocabulary(folder, size).pre == KINDS[kind][1]


def test_sentencepiece_saved_only_as_json_keeps_the_order_of_its_merges(
    files: dict[str, tuple[Path, Path]],
) -> None:
    """transformers 5 saves no tokenizer.model; equal scores would cut words elsewhere."""
    size = json.loads((files["spm"][0] / "config.json").read_text("utf-8"))["vocab_size"]
    model, saved = (tokenizer.load_vocabulary(files[kind][0], size) for kind in ("spm", "spm-json"))
    assert saved.tokens == model.tokens
    assert saved.kinds == model.kinds
    normal = [
        n
        for n, kind in enumerate(model.kinds)
        if kind == TokenType.NORMAL and len(model.tokens[n]) > 1
    ]
    by_model = sorted(normal, key=lambda n: -model.scores[n])
    by_json = sorted(normal, key=lambda n: -saved.scores[n])
    assert by_model == by_json


def test_a_tokenizer_saved_again_is_still_known(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Saving moves pieces about and drops the beginning: a hash of ids would miss."""
    transformers = pytest.importorskip("transformers")
    folder, _ = files["llama"]
    again = transformers.AutoTokenizer.from_pretrained(folder)
    again.add_special_tokens({"pad_token": "<|pad|>"})
    again.save_pretrained(tmp_path)
    size = len(again) + 10
    found = tokenizer.load_vocabulary(tmp_path, size)
    assert found.pre == "llama-bpe"
    assert found.special["pad"] == again.pad_token_id
    assert found.tokens[again.pad_token_id] == "<|pad|>"
    assert found.template == tiny_tokenizers.LLAMA_TEMPLATE


def test_ids_without_a_text_are_named_and_never_used(files: dict[str, tuple[Path, Path]]) -> None:
    folder, _ = files["llama"]
    size = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    found = tokenizer.load_vocabulary(folder, size)
    assert found.tokens[-1] == f"[PAD{size - 1}]"
    assert found.kinds[-1] == TokenType.UNUSED
    assert len(set(found.tokens)) == size


def test_added_tokens_are_control_or_the_users_own(files: dict[str, tuple[Path, Path]]) -> None:
    found = tokenizer.load_vocabulary(files["qwen2"][0], 600)
    kinds = dict(zip(found.tokens, found.kinds, strict=True))
    assert kinds["<|im_end|>"] == TokenType.CONTROL
    assert kinds["<tool_call>"] == TokenType.USER_DEFINED


def copy(folder: Path, out: Path, **changes: Any) -> Path:
    """A model folder with one file of JSON changed by keys."""
    shutil.copytree(folder, out)
    for name, values in changes.items():
        path = out / f"{name}.json"
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        tiny_models.write_json(path, found | values)
    return out


def test_further_ends_of_a_reply_are_told_to_llama_cpp(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """It knows usual ones by their text; an unusual one must be said, or answers run on."""
    whole = json.loads((files["qwen2"][0] / "tokenizer.json").read_text("utf-8"))
    ids = {one["content"]: one["id"] for one in whole["added_tokens"]}
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"], ids["<tool_call>"]]
    folder = copy(files["qwen2"][0], tmp_path / "m", generation_config={"eos_token_id": ends})
    plan = export_plan.plan_export(source.find_source(str(folder)))
    assert plan.vocabulary.special["eot"] == ids["<tool_call>"]
    export_plan.write_gguf_files(plan, {"F16": tmp_path / "m.gguf"}, threads=1)
    with LlamaModel(tmp_path / "m.gguf", vocabulary=True) as loaded:
        assert [loaded.ends_reply(number) for number in ends] == [True] * 3
        assert not loaded.ends_reply(ids["<|im_start|>"])


def test_the_adapters_chat_template_wins(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """It was trained with it; where transformers put it depends on its version."""
    folder, _ = files["llama"]
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    assert (
        tokenizer.load_vocabulary(folder, 600, template_from=tmp_path).template == "{{ messages }}"
    )
    tiny_models.write_json(tmp_path / "tokenizer_config.json", {"chat_template": "{{ bos_token }}"})
    assert (
        tokenizer.load_vocabulary(folder, 600, template_from=tmp_path).template == "{{ bos_token }}"
    )


def test_several_templates_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "chat_template.jinja").write_text("one", "utf-8")
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("two", "utf-8")
    assert tokenizer_files.chat_template(tmp_path) == [
        {"name": "default", "template": "one"},
        {"name": "tool_use", "template": "two"},
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            "cuts text in a way that llama.cpp has no name for",
        ),
        ({"model": {"type": "Unigram", "vocab": []}}, "is a Unigram tokenizer"),
    ],
)
def test_an_unknown_tokenizer_is_refused(
    files: dict[str, tuple[Path, Path]], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = copy(files["llama"][0], tmp_path / "m", tokenizer=change)
    with pytest.raises(RigError, match=sentence):
        tokenizer.load_vocabulary(folder, 600)


def test_a_tokenizer_bigger_than_the_model_is_refused(files: dict[str, tuple[Path, Path]]) -> None:
    with pytest.raises(RigError, match="but the model has only 100 embeddings"):
        tokenizer.load_vocabulary(files["llama"][0], 100)


def test_a_folder_without_a_tokenizer_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="copy the base model's there"):
        tokenizer.load_vocabulary(tmp_path, 100)


# ----------------------------------------------------------------------------------------------------------
# Real ones


@pytest.mark.parametrize(
    ("folder", "packed", "size", "pre", "specials", "adds"),
    [
        pytest.param(
            "Llama-3.2-1B-Instruct", "llama-3.1-tokenizer", 128256, "llama-bpe",
            {"bos": 128000, "eos": 128009}, {"bos": True, "eos": False, "sep": False}, id="Llama 3.2",
        ),
        pytest.param(
            "unsloth-meta-llama-3.1-8b-instruct-bnb-4bit", "llama-3.1-tokenizer", 128256, "llama-bpe",
            {"bos": 128000, "eos": 128009, "pad": 128004}, {"bos": True, "eos": False, "sep": False},
            id="as unsloth saves it",
        ),
        pytest.param(
            "smollm2-tokenizer", "smollm2-tokenizer", 49152, "smollm", {"bos": 1, "eos": 2, "pad": 2},
            {"bos": False, "eos": False}, id="SmolLM2, merges saved as pairs",
        ),
    ],
)  # fmt: skip
def test_real_tokenizers(
    shared: Path,
    tmp_path: Path,
    folder: str,
    packed: str,
    size: int,
    pre: str,
    specials: dict[str, int],
    adds: dict[str, bool],
) -> None:
    given = shared / "data/models"
    shutil.copytree(given / folder, tmp_path / "m")
    raw = gzip.decompress((given / packed / "tokenizer.json.gz").read_bytes())
    (tmp_path / "m/tokenizer.json").write_bytes(raw)
    found = tokenizer.load_vocabulary(tmp_path / "m", size)
    assert (found.model, found.pre, len(found.tokens)) == ("gpt2", pre, size)
    assert specials.items() <= found.special.items()
    assert found.adds == adds
    assert found.template is not None
    assert "eot" not in found.special  # llama.cpp knows the ends of these by their texts
