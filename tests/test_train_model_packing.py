"""Learning without padding, against the padded rows: `pytest tests/test_train_model_packing.py`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")
transformers = pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from support.one_thread import one_thread  # noqa: E402, F401
from support.random_models import FAMILIES, SHAPE, gpt2, granite, model  # noqa: E402
from support.small_runs import start  # noqa: E402
from train.model import packing  # noqa: E402
from train.monitor import log  # noqa: E402

PROMPT, COMPLETION = 11, 9


def rows(completions: tuple[int, ...] = (9, 5, 1, 0, 7, 3)) -> tuple[Any, Any]:
    """Six rows of three prompts of 11, 7 and 9 tokens, with completions of these lengths."""
    torch.manual_seed(1)
    ids = torch.randint(5, 300, (6, PROMPT + COMPLETION))
    mask = torch.ones_like(ids)
    for row, source in ((1, 0), (2, 0), (4, 3)):
        ids[row, :PROMPT] = ids[source, :PROMPT]
    mask[3:5, :4], mask[5, :2] = 0, 0
    for row, length in enumerate(completions):
        mask[row, PROMPT + length :] = 0
    return ids, mask


def logps(taught: Any, ids: Any, mask: Any) -> Any:
    """Log-probability of every completion token, (rows, completion), 0 where there is none."""
    logits = taught(
        input_ids=ids, attention_mask=mask, logits_to_keep=COMPLETION + 1, use_cache=False
    ).logits[:, :-1]
    said = ids[:, PROMPT:, None]
    return logits.log_softmax(-1).gather(-1, said)[..., 0] * mask[:, PROMPT:]


def gradients(taught: Any, found: Any, weights: Any) -> dict[str, Any]:
    taught.zero_grad()
    (found * weights).sum().backward()
    return {name: p.grad.clone() for name, p in taught.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [*FAMILIES, "granite"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_learn_what_padded_rows_learn(family: str, checkpointing: bool) -> None:
    taught = granite() if family == "granite" else model(family)
    taught.train()
    ids, mask = rows()
    weights = torch.randn(6, COMPLETION)
    padded = logps(taught, ids, mask)
    wanted = gradients(taught, padded, weights)
    assert packing.can_pack(taught)
    packing.install_packed_attention(taught)
    if checkpointing:
        taught.gradient_checkpointing_enable({"use_reentrant": False})
    with packing.packed_forward(taught, PROMPT):
        packed = logps(taught, ids, mask)
    found = gradients(taught, packed, weights)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    assert wanted.keys() == found.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_sixteen_bits_round_no_worse_than_with_padding() -> None:
    """As on a GPU: 16-bit weights that are frozen, a LoRA in 32 bits, autocast, layers computed twice.

    The error of one gradient is a draw: from processor to processor (its kernels sum in another order) and
    from loss to loss the packed one is 0.8 to 1.25 times the padded one. Over several losses it is the same.
    """
    from peft import LoraConfig, get_peft_model

    ids, mask = rows()
    losses = torch.randn(12, 6, COMPLETION)

    def learnt(*, bits: int, packed: bool) -> Any:
        taught = get_peft_model(
            model().to(torch.bfloat16),
            LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        ).train()
        for parameter in taught.parameters():
            if bits == 32 or parameter.requires_grad:
                parameter.data = parameter.data.float()
        taught.gradient_checkpointing_enable({"use_reentrant": False})
        taught.enable_input_require_grads()
        packing.install_packed_attention(taught)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=bits == 16))
            if packed:
                stack.enter_context(packing.packed_forward(taught, PROMPT))
            found = [gradients(taught, logps(taught, ids, mask).float(), one) for one in losses]
        assert {len(each) for each in found} == {2 * 2 * 7}
        assert {g.dtype for each in found for g in each.values()} == {torch.float32}
        return torch.cat([g.flatten() for each in found for g in each.values()])

    exact = learnt(bits=32, packed=False)
    padded, packed = (
        float((learnt(bits=16, packed=one) - exact).norm() / exact.norm()) for one in (False, True)
    )
    assert 0 < packed < 1.15 * padded < 0.2, (padded, packed)


def test_the_model_reads_each_token_once() -> None:
    taught, (ids, mask) = model(), rows()
    packing.install_packed_attention(taught)
    read: list[Any] = []
    taught.model.layers[0].register_forward_pre_hook(lambda _, given: read.append(given[0].shape))
    with packing.packed_forward(taught, PROMPT):
        logps(taught, ids, mask)
    logps(taught, ids, mask)
    completions = int(mask[:, PROMPT:].sum())
    assert read == [(1, 11 + 7 + 9 + completions, 32), (*ids.shape, 32)]


def test_completions_do_not_see_each_other() -> None:
    """Another token in one completion changes that row alone; a padded token changes nothing."""
    taught, (ids, mask) = model(), rows()
    packing.install_packed_attention(taught)
    changed = ids.clone()
    changed[0, PROMPT] = (changed[0, PROMPT] + 7) % 290 + 5
    changed[3, 0] = 17  # left of the prompt
    changed[2, -1] = 23  # behind the completion
    with packing.packed_forward(taught, PROMPT):
        one, two = logps(taught, ids, mask), logps(taught, changed, mask)
    assert not torch.equal(one[0], two[0])
    torch.testing.assert_close(one[1:], two[1:])


def test_a_micro_batch_whose_completions_are_all_masked_has_no_gradient() -> None:
    taught = model()
    ids, mask = rows((0,) * 6)
    packing.install_packed_attention(taught)
    with packing.packed_forward(taught, PROMPT):
        found = logps(taught, ids, mask)
    assert torch.equal(found, torch.zeros(6, COMPLETION))
    assert all((g == 0).all() for g in gradients(taught, found, torch.ones_like(found)).values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_token_has_one_place_and_comes_back_to_its_row(data: st.DataObject) -> None:
    prompts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    groups = data.draw(
        st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=8), label="prompt of a row"
    )
    lengths = [data.draw(st.integers(0, 7)) for _ in groups]
    ids, mask = torch.ones(2, len(groups), 13, dtype=torch.long)
    mask[:] = 0
    for row, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        for at in range(prompts[group]):
            ids[row, 6 - prompts[group] + at] = 10 * (group + 2) + at
        ids[row, 6 : 6 + length] = torch.arange(length) + 100 * (row + 1)
        mask[row, 6 - prompts[group] : 6 + length] = 1
    found = packing.build_layout(ids, mask, 6)
    held = mask.bool()
    assert found.ids.numel() == sum(prompts[one] for one in set(groups)) + sum(lengths)
    assert torch.equal(found.ids[0][found.rows][held], ids[held])
    assert torch.equal(found.positions[0][found.rows][held], (mask.cumsum(1) - 1)[held])
    assert torch.equal(found.spots[found.place], torch.arange(found.ids.numel()))
    assert found.held.sum() == found.ids.numel()
    assert not found.spots[~found.held.flatten()].any()
    (different, wide), (count, longest) = found.widths
    assert (different, count) == (len(set(groups)), len(groups))
    assert (wide + longest) % packing.ROUND == 0
    assert found.mask.any(-1).all(), "a query that looks at nothing would be NaN"
    asked = found.spots[: different * wide].view(different, wide)
    said = found.spots[different * wide :].view(count, longest)
    for row, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        keys = found.ids[0][torch.cat([asked[found.group[row]], said[row]])]
        for at in range(length):
            seen = keys[found.mask[row, 0, at]].tolist()
            assert seen == ids[row, 6 - prompts[group] : 6 + at + 1].tolist()


@pytest.mark.parametrize("back", [True, False])
def test_the_gradient_of_taken_rows_is_that_of_index_select(back: bool) -> None:
    torch.manual_seed(0)
    source = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randperm(7) if back else torch.randint(0, 7, (12,))
    inverse = index.argsort() if back else None
    found = packing.gather_rows(source, index, inverse)
    assert torch.equal(found, source[index])
    assert torch.autograd.gradcheck(lambda one: packing.gather_rows(one, index, inverse), source)


def test_completions_of_a_prompt_are_brought_together_and_nothing_is_lost() -> None:
    prompts = torch.tensor([[7, 7], [5, 5], [7, 7], [9, 9], [5, 5], [7, 7]])
    batches = [
        {"prompt_ids": prompts[at : at + 3], "advantages": torch.arange(at, at + 3.0),
         "num_items_in_batch": torch.tensor(40), "pixel_values": None, "words": list("abcdef"[at : at + 3])}
        for at in (0, 3)
    ]  # fmt: skip
    found = packing.group_by_prompt(batches)
    assert [batch["prompt_ids"][:, 0].tolist() for batch in found] == [[7, 7, 7], [5, 5, 9]]
    assert [batch["advantages"].tolist() for batch in found] == [[0, 2, 5], [1, 4, 3]]
    assert [batch["words"] for batch in found] == [["a", "c", "f"], ["b", "e", "d"]]
    assert all(batch["num_items_in_batch"] == 40 for batch in found)
    assert all(batch["pixel_values"] is None for batch in found)


def test_what_can_not_be_packed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not packing.can_pack(
        transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=8, **SHAPE))
    )
    eager = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**SHAPE), attn_implementation="eager"
    )
    assert not packing.can_pack(eager)
    monkeypatch.setitem(sys.modules, "unsloth", object())
    assert not packing.can_pack(model())


@pytest.mark.parametrize(
    ("shape", "full"),
    [
        ({}, True),
        ({"sliding_window": None}, True),
        ({"sliding_window": 8}, False),
        ({"sliding_window": 8, "use_sliding_window": True}, False),
        ({"sliding_window": 8, "use_sliding_window": False}, True),
        ({"layer_types": None}, True),
        ({"layer_types": ["full_attention", "full_attention"]}, True),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, False),
    ],
    ids=str,
)
def test_attention_is_full_where_no_layer_looks_through_a_window(
    shape: dict[str, Any], full: bool
) -> None:
    class Config:
        def get_text_config(self, *, decoder: bool) -> Any:
            assert decoder, "of a model that reads pictures too, the half that writes"
            return SimpleNamespace(**shape)

    assert packing.full_attention(SimpleNamespace(config=Config())) is full


def test_a_token_has_its_place_in_its_own_row_where_places_are_learnt() -> None:
    """TRL counts the padding before a prompt as places; generating does not, and packing neither."""
    taught = gpt2().eval()
    ids, mask = rows()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = taught(input_ids=ids, attention_mask=mask, position_ids=places).logits
    chosen = logits[:, PROMPT - 1 : -1].log_softmax(-1).gather(-1, ids[:, PROMPT:, None])
    assert packing.can_pack(taught)
    packing.install_packed_attention(taught)
    with packing.packed_forward(taught, PROMPT):
        found = logps(taught, ids, mask)
    torch.testing.assert_close(found, chosen[..., 0] * mask[:, PROMPT:], rtol=1e-4, atol=1e-5)


QUICK = ("schedule.max_steps=1", "evaluation.problems=0", "backend.preflight=false")


@pytest.mark.parametrize(
    ("changes", "figures"),
    [
        (("schedule.micro_batch=8",), ("loss", "grad_norm", "entropy")),
        (
            ("schedule.micro_batch=8", "backend.chunked_logprobs=true",
             "schedule.gradient_checkpointing=true", "grpo.mask_truncated_completions=true"),
            ("loss", "grad_norm"),
        ),
        (("schedule.micro_batch=2", "grpo.num_iterations=2"), ("loss", "grad_norm")),
    ],
    ids=["whole", "pieces", "micro"],
)  # fmt: skip
def test_a_run_logs_what_it_logs_with_padded_rows(
    elsewhere: Path, changes: tuple[str, ...], figures: tuple[str, ...]
) -> None:
    first = {}
    for packed in ("true", "false"):
        start(*QUICK, *changes, f"backend.packed={packed}", name=packed)
        first[packed] = log.read_step_rows(Path("runs") / packed / log.LOG)[0]
    for key in ("reward", "num_tokens"):
        assert first["true"][key] == first["false"][key], key
    for key in figures:
        assert first["true"][key] == pytest.approx(first["false"][key], rel=2e-3, abs=1e-6), key
    assert first["true"]["grad_norm"] > 0
