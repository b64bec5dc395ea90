"""The other forms: merged folder, GGUF adapter, Modelfile: `pytest tests/test_export_forms.py`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import lora_gguf, merged_model, modelfile
from export import plan as export_plan
from export.checkpoint import source, tokenizer
from export.checkpoint.safetensors import folder_weights
from export.llama import LlamaModel
from rig.errors import RigError
from rig.model.chat_template import render_chat
from rig.model.gguf import read_header
from rig.model.reply_format import TAUGHT, ReplyFormat
from support import tiny_models, tiny_tokenizers
from support.gguf_files import keys, numbers, tensors

TOKENS = [3, 17, 200, 41, 7, 300, 12, 90, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("others")
    small: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 256}
    tiny_models.make(root / "llama", "llama", **small)
    tiny_models.make(root / "qwen2", "qwen2", tie_word_embeddings=True, **small)
    for name in ("llama", "qwen2"):
        targets = "(q|k|v|o|up)_proj"
        taught = tiny_models.make_adapter(root / f"{name}-taught", root / name, targets=targets)
        TAUGHT.save_to(taught)
    return root


def plan(adapter: Path, **more: Any) -> export_plan.ExportPlan:
    return export_plan.plan_export(source.find_source(str(adapter), **more))


def f32(plan: export_plan.ExportPlan, out: Path) -> Path:
    export_plan.write_gguf_files(plan, {"F32": out}, threads=1)
    return out


# ----------------------------------------------------------------------------------------------------------
# GGUF adapter


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("llama", {"use_rslora": True}),
        ("qwen2", {"alpha_pattern": {"q_proj": 4}, "rank_pattern": {"v_proj": 2}}),
    ],
)
def test_base_and_adapter_at_run_time_compute_what_the_merged_file_does(
    root: Path, tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    """Also where the format knows only one alpha and the modules have several."""
    taught = tiny_models.make_adapter(tmp_path / "taught", root / name, size=0.1, **config)
    made = lora_gguf.write_lora_gguf(plan(taught), tmp_path / "lora.gguf")
    together = f32(plan(taught), tmp_path / "together.gguf")
    bare = f32(
        export_plan.plan_export(source.find_source(str(root / name))), tmp_path / "bare.gguf"
    )
    with LlamaModel(together, context=64, threads=1) as loaded:
        wanted = loaded.compute_logits(TOKENS)
    with LlamaModel(bare, context=64, threads=1) as loaded:
        before = loaded.compute_logits(TOKENS)
    with LlamaModel(bare, context=64, threads=1, adapter=made.path) as loaded:
        got = loaded.compute_logits(TOKENS)
    scale = np.abs(wanted).max()
    assert np.abs(wanted - before).max() > 0.1 * scale
    assert np.abs(wanted - got).max() < 2e-3 * scale


def test_the_adapter_file_carries_the_contract(root: Path, tmp_path: Path) -> None:
    lora_gguf.write_lora_gguf(plan(root / "llama-taught"), tmp_path / "lora.gguf")
    found = keys(tmp_path / "lora.gguf")
    assert ReplyFormat.from_metadata(found) == TAUGHT
    assert found["general.type"] == "adapter"
    assert found["adapter.type"] == "lora"
    assert found["adapter.lora.alpha"] == 16.0
    names = {t.name: t for t in read_header(tmp_path / "lora.gguf").tensors}
    assert names["blk.0.attn_q.weight.lora_a"].shape == (8, 256)
    assert names["blk.0.attn_q.weight.lora_b"].shape == (256, 8)


@pytest.mark.parametrize(
    ("name", "extra", "sentence"),
    [
        ("llama", {"dora": True}, "in another way .DoRA, a bias, or saved whole"),
        ("llama", {"saved": "lm_head.weight"}, "changes lm_head.weight in another way"),
        ("qwen2", {"targets": "embed_tokens"}, "one table for input and output"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    root: Path, tmp_path: Path, name: str, extra: dict[str, Any], sentence: str
) -> None:
    saved = extra.pop("saved", None)
    targets = extra.pop("targets", None)
    folder = tiny_models.make_adapter(tmp_path / "taught", root / name, **extra)
    rows = tiny_models.read_shapes(root / name)["model.embed_tokens.weight"]
    if saved:
        tiny_models.write_adapter(
            folder,
            {f"base_model.model.{saved}": np.ones(rows, np.float32)},
            base_model_name_or_path=str(root / name),
        )
    if targets:
        at = "base_model.model.model.embed_tokens.lora_embedding_"
        pair = {
            at + "A": np.ones((4, rows[0]), np.float32),
            at + "B": np.ones((256, 4), np.float32),
        }
        tiny_models.write_adapter(folder, pair, r=4, base_model_name_or_path=str(root / name))
    with pytest.raises(RigError, match=sentence):
        lora_gguf.write_lora_gguf(plan(folder), tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()


# ----------------------------------------------------------------------------------------------------------
# Merged folder


@pytest.mark.parametrize("shard", [merged_model.SHARD, 600_000])
def test_the_merged_folder_is_the_model_that_was_trained(
    root: Path, tmp_path: Path, shard: int
) -> None:
    """One file or several; what the adapter does not touch keeps every bit."""
    done = merged_model.write_merged_model(
        plan(root / "llama-taught"), tmp_path / "merged", threads=2, shard=shard
    )
    assert (len(done) > 1) == (shard < merged_model.SHARD)
    before, after = folder_weights(root / "llama"), folder_weights(tmp_path / "merged")
    assert set(before) == set(after)
    changed = {name for name in before if raw(before[name]) != raw(after[name])}
    assert changed == {name for name in before if re.search(r"(q|k|v|o|up)_proj", name)}
    direct = numbers(f32(plan(root / "llama-taught"), tmp_path / "direct.gguf"))
    through = numbers(
        f32(
            export_plan.plan_export(source.find_source(str(tmp_path / "merged"))),
            tmp_path / "m.gguf",
        )
    )
    for name, values in direct.items():
        np.testing.assert_allclose(through[name], values, rtol=2**-8, atol=1e-6)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


def raw(tensor: Any) -> bytes:
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return bytes(file.read(2 * int(np.prod(tensor.shape))))


def test_transformers_loads_the_merged_folder(root: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    merged_model.write_merged_model(plan(root / "qwen2-taught"), tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.inference_mode():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    whole = f32(
        export_plan.plan_export(source.find_source(str(tmp_path / "merged"))), tmp_path / "m.gguf"
    )
    with LlamaModel(whole, context=64, threads=1) as loaded:
        got = loaded.compute_logits(TOKENS)
        said = [{"role": "user", "content": "Hi"}]
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert loaded.tokenize_text(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert np.abs(wanted - got).max() < 2e-3 * np.abs(wanted).max()
    assert (
        json.loads((tmp_path / "merged/config.json").read_text("utf-8"))["tie_word_embeddings"]
        is True
    )
    assert ReplyFormat.from_folder(tmp_path / "merged") == TAUGHT


def test_a_32_bit_base_becomes_bfloat16(tmp_path: Path) -> None:
    model = tiny_models.make(tmp_path / "m", "llama", dtype="F32", num_hidden_layers=1)
    merged_model.write_merged_model(
        plan(tiny_models.make_adapter(tmp_path / "a", model)), tmp_path / "merged"
    )
    assert {t.dtype for t in folder_weights(tmp_path / "merged").values()} == {"BF16"}
    config = json.loads((tmp_path / "merged/config.json").read_text("utf-8"))
    assert config["torch_dtype"] == "bfloat16"


def test_a_head_that_was_trained_apart_unties_the_merged_model(root: Path, tmp_path: Path) -> None:
    rows = tiny_models.read_shapes(root / "qwen2")["model.embed_tokens.weight"]
    taught = tmp_path / "taught"
    tiny_models.write_adapter(taught, {"base_model.model.lm_head.weight": np.ones(rows, np.float32)},
                              base_model_name_or_path=str(root / "qwen2"))  # fmt: skip
    merged_model.write_merged_model(plan(taught), tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] is False
    assert "lm_head.weight" in folder_weights(tmp_path / "merged")


def test_a_folder_that_holds_something_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(RigError, match="is there already"):
        merged_model.write_merged_model(plan(root / "llama-taught"), tmp_path / "merged")
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["thesis.txt"]


# ----------------------------------------------------------------------------------------------------------
# Tied tables


def test_a_head_that_only_repeats_the_tied_table_is_not_written_twice(tmp_path: Path) -> None:
    """Some merges save both; the file would be larger and the head quantised apart."""
    model = tiny_models.make(tmp_path / "m", "llama", num_hidden_layers=1)
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["tie_word_embeddings"] = True
    tiny_models.write_json(model / "config.json", config)
    values = tiny_models.weights({**config, "tie_word_embeddings": False}, "llama", 0, False)
    other = dict(values)
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    tiny_models.write_weights(model, values, "BF16")
    same = f32(export_plan.plan_export(source.find_source(str(model))), tmp_path / "same.gguf")
    tiny_models.write_weights(model, other, "BF16")
    apart = f32(export_plan.plan_export(source.find_source(str(model))), tmp_path / "apart.gguf")
    assert "output.weight" not in tensors(same)
    assert "output.weight" in tensors(apart)


# ----------------------------------------------------------------------------------------------------------
# Chat forms and the Modelfile


def go(template: str, system: str, turns: list[tuple[str, str]]) -> str:
    """What Ollama makes of a template of the pieces that rig writes, turn by turn."""

    def one(system: str, prompt: str, response: str) -> str:
        def keep(match: re.Match[str]) -> str:
            return match[2] if {"System": system, "Prompt": prompt}[match[1]] else ""

        text = re.sub(r"\{\{ if \.(\w+) \}\}(.*?)\{\{ end \}\}", keep, template, flags=re.DOTALL)
        for name, value in (("System", system), ("Prompt", prompt)):
            text = text.replace(f"{{{{ .{name} }}}}", value)
        before, after = text.split("{{ .Response }}")
        return before + (response + after if response else "")

    return "".join(one(system if n == 0 else "", *turn) for n, turn in enumerate(turns))


GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<start_of_turn>user\n{{ m.content }}\n"
    "{% else %}{% if not loop.previtem or loop.previtem.role != 'system' %}<start_of_turn>{{ m.role }}\n"
    "{% endif %}{{ m.content }}<end_of_turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "bos"),
    [(tiny_tokenizers.LLAMA_TEMPLATE, "<|begin_of_text|>"), (tiny_tokenizers.CHATML_TEMPLATE, "")],
)
def test_ollama_will_write_a_conversation_as_the_template_does(template: str, bos: str) -> None:
    turns = modelfile.split_turns(template, bos=bos, eos="")
    assert turns is not None
    words = tokenizer.Vocabulary("gpt2", "x", [bos], [3], special={"bos": 0}, template=template)
    text = modelfile.render_modelfile("m.gguf", words, ReplyFormat())
    found = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert found is not None
    said = [("first?", "one."), ("second?", "")]
    for system in ("Be brief.", ""):
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in said:
            messages.append({"role": "user", "content": question})
            messages += [{"role": "assistant", "content": answer}] if answer else []
        wanted = render_chat(template, messages, bos=bos, eos="").removeprefix(bos)
        assert go(found[1], system, said) == wanted


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content }}", "only the first message"),
        (GEMMA, "the system prompt moves into the user's turn"),
        ("{{ raise_exception('no system') }}", "it raises"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "everything twice"),
        ("{% if %}", "not a template"),
    ],
)
def test_a_template_that_is_not_made_of_fixed_pieces_is_left_to_ollama(
    template: str, reason: str
) -> None:
    assert modelfile.split_turns(template, bos="<bos>", eos="") is None, reason
    words = tokenizer.Vocabulary("gpt2", "x", [], [], template=template)
    text = modelfile.render_modelfile("m.gguf", words, TAUGHT)
    assert "TEMPLATE" not in text
    assert "Ollama guesses" in text
    assert TAUGHT.system_prompt in text


def test_the_modelfile_of_a_run_stops_where_the_model_was_taught_to(root: Path) -> None:
    found = plan(root / "llama-taught")
    text = modelfile.render_modelfile("x-Q4_K_M.gguf", found.vocabulary, found.source.reply_format)
    assert text.splitlines()[1] == "FROM ./x-Q4_K_M.gguf"
    assert f'SYSTEM """{TAUGHT.system_prompt}"""' in text
    assert re.findall(r'PARAMETER stop "(.*)"', text) == ["<|eot_id|>"]


def test_real_llama_3_pieces(shared: Path) -> None:
    """The published template always writes a system turn; the pieces of the others are still found."""
    config = json.loads(
        (shared / "data/models/Llama-3.1-8B-Instruct/tokenizer_config.json").read_text("utf-8")
    )
    found = modelfile.split_turns(
        config["chat_template"], bos="<|begin_of_text|>", eos="<|eot_id|>"
    )
    assert found is not None
    assert found.user == ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")
    assert found.assistant == ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>")


def test_folders_are_copied_not_linked(root: Path, tmp_path: Path) -> None:
    """A merged folder outlives its base."""
    shutil.copytree(root / "llama", tmp_path / "base")
    taught = tiny_models.make_adapter(tmp_path / "taught", tmp_path / "base")
    merged_model.write_merged_model(plan(taught), tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")
    made = f32(
        export_plan.plan_export(source.find_source(str(tmp_path / "merged"))), tmp_path / "m.gguf"
    )
    assert made.stat().st_size > 0
