"""Completions for training, against generate: `pytest tests/test_train_model_generate.py`."""

from __future__ import annotations

import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")
transformers = pytest.importorskip("transformers")

from support.one_thread import one_thread  # noqa: E402, F401
from support.random_models import FAMILIES, gpt2, granite, model  # noqa: E402
from train.model import generate  # noqa: E402
from train.plan import memory  # noqa: E402

PROMPT, PAD, END = 40, 1, 4


def prompts() -> tuple[Any, Any]:
    """Six prompts, each four times in a row, left-padded to different lengths."""
    torch.manual_seed(1)
    ids = torch.randint(5, 300, (6, PROMPT))
    mask = torch.ones_like(ids)
    for row in range(6):
        mask[row, : row * 5] = 0
        ids[row, : row * 5] = PAD
    return ids.repeat_interleave(4, 0), mask.repeat_interleave(4, 0)


def kept_prompts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each generation keeps in its cache, to be filled."""
    kept: list[int] = []
    read = generate._read

    def noted(*words: Any) -> Any:
        logits, found = read(*words)
        kept.append(len(found.keys[0]))
        return logits, found

    monkeypatch.setattr(generate, "_read", noted)
    return kept


def settings(**changes: Any) -> Any:
    chosen = {
        "max_new_tokens": 12,
        "do_sample": False,
        "top_k": 0,
        "pad_token_id": PAD,
        "eos_token_id": [END],
    }
    return transformers.GenerationConfig(**{**chosen, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 20},
        {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.1},
        {"max_new_tokens": 1},
    ],
    ids=str,
)
def test_every_row_says_what_generate_would_say(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        generate.DecodeStep, "keep_rows", None
    )  # nothing ends here, so no row may leave the batch
    taught, (ids, mask), config = model(), prompts(), settings(**changes, eos_token_id=[299_999])
    torch.manual_seed(7)
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    torch.manual_seed(7)
    assert torch.equal(generate.generate(taught, ids, mask, config), expected)


def test_a_row_that_ends_is_padded_and_the_others_go_on_alike() -> None:
    taught, (ids, mask) = model(), prompts()
    said = generate.generate(taught, ids, mask, settings())[:, PROMPT:]
    # a token that some rows say early: let it be the end
    often = int(said.mode(0).values.mode().values)
    config = settings(eos_token_id=[often, END])
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert (expected[:, PROMPT:] == often).any()
    assert torch.equal(generate.generate(taught, ids, mask, config), expected)
    longer = settings(eos_token_id=[often, END], min_new_tokens=9)  # as preflight's worst case asks
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=longer)
    assert not (expected[:, PROMPT : PROMPT + 9] == often).any()
    assert torch.equal(generate.generate(taught, ids, mask, longer), expected)


@pytest.mark.parametrize("at_once", [1, 5, 6, 8, 10, 24, 99])
def test_rows_in_portions_say_what_they_say_together(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, (ids, mask) = model(), prompts()
    said = generate.generate(taught, ids, mask, settings())[:, PROMPT:]
    often = int(said.mode(0).values.mode().values)  # some portions end early, others do not
    config = settings(eos_token_id=[often, END])
    whole = generate.generate(taught, ids, mask, config)
    sizes: list[int] = []
    kept = kept_prompts(monkeypatch)

    def portion(ids: Any, mask: Any) -> Any:
        sizes.append(len(ids))
        return generate.generate(taught, ids, mask, config)

    assert torch.equal(generate.generate_in_portions(portion, ids, mask, config, at_once), whole)
    assert max(sizes) == min(at_once, 24)
    assert sum(sizes) == 24
    assert max(kept) <= memory.prompts_per_portion(min(at_once, 24), 4), "what the plan counts on"


def test_a_small_portion_of_prompts_at_a_time_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taught, (ids, mask) = model(), prompts()
    whole = generate.generate(taught, ids, mask, settings())
    monkeypatch.setattr(generate, "PREFILL_TOKENS", 2 * PROMPT)
    assert torch.equal(generate.generate(taught, ids, mask, settings()), whole)


@pytest.mark.parametrize("name", [*FAMILIES, "gpt2"])
@pytest.mark.parametrize("order", ["groups", "mixed", "uneven", "pairs", "different"])
def test_every_family_and_every_order_of_prompts_says_what_generate_says(
    name: str, order: str
) -> None:
    """A prompt stands once for each block of equal rows; some rows end early and leave the batch."""
    taught, (ids, mask) = gpt2() if name == "gpt2" else model(name), prompts()
    taught.eval()
    rows = {
        "groups": list(range(24)),
        "mixed": torch.randperm(24).tolist(),
        "uneven": [0, 1, 2, 4, 8, 9, 10, 11],
        "pairs": [0, 1, 4, 5, 6, 7, 0, 1, 20, 21],
        "different": [0, 4, 8, 12, 16, 20],
    }[order]
    ids, mask = ids[rows], mask[rows]
    said = generate.generate(taught, ids, mask, settings())[:, PROMPT:]
    often = int(said.mode(0).values.mode().values)
    config = settings(eos_token_id=[often, END], max_new_tokens=20)
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert torch.equal(generate.generate(taught, ids, mask, config), expected)


def test_a_prompt_is_kept_once_for_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kept_prompts(monkeypatch)
    taught, (ids, mask) = model(), prompts()
    for rows in (range(24), range(2, 24), [*range(4, 8), *range(8), *range(8, 16)]):
        generate.generate(taught, ids[list(rows)], mask[list(rows)], settings())
    # whole groups; two rows of the first prompt and four of the others: pairs; a prompt in two places
    assert kept == [6, 11, 5]


def test_models_that_unsloth_has_rewritten_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate.can_generate(model(), settings())
    monkeypatch.setitem(sys.modules, "unsloth", object())
    assert not generate.can_generate(model(), settings())


def test_the_model_is_left_as_it_was() -> None:
    taught, (ids, mask) = model(), prompts()
    taught.train()
    generate.generate(taught, ids, mask, settings(max_new_tokens=2))
    assert taught.training
    assert taught.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("shape", "changes", "fits"),
    [
        ({}, {}, True),
        ({"layer_types": ["sliding_attention", "full_attention"]}, {}, False),
        ({}, {"num_beams": 2}, False),
        ({}, {"num_beams": 1, "num_return_sequences": 1}, True),
        ({}, {"num_beams": None, "num_return_sequences": None}, True),
        ({}, {"num_return_sequences": 2, "do_sample": True}, False),
    ],
)
def test_what_it_cannot_do_is_left_to_generate(
    shape: dict[str, Any], changes: dict[str, Any], fits: bool
) -> None:
    assert generate.can_generate(model(**shape), settings(**changes)) is fits


def test_a_model_whose_replies_end_by_their_length_alone_says_what_generate_says() -> None:
    """No token ends them and none pads them; the prompts are no multiple of 8 long."""
    taught, (ids, mask) = model(pad_token_id=None, eos_token_id=None), prompts()
    ids, mask = ids[:, 3:], mask[:, 3:]
    config = settings(eos_token_id=None, pad_token_id=None)
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert torch.equal(generate.generate(taught, ids, mask, config), expected)


def test_a_model_with_a_scale_of_its_own_in_attention_says_what_generate_says() -> None:
    taught, (ids, mask) = granite(), prompts()
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=settings())
    assert torch.equal(generate.generate(taught, ids, mask, settings()), expected)


@pytest.mark.parametrize(
    ("frozen", "within"),
    [
        (["bfloat16"], "bfloat16"),
        (["float16"], "float16"),
        (["float64", "float16"], "float16"),
        (["float16", "float64"], "float16"),
        (["float32", "bfloat16"], "float32"),
        ([], "float32"),
    ],
)
def test_an_adapter_answers_in_the_bits_of_a_model_that_has_only_others(
    frozen: list[str], within: str
) -> None:
    taught = torch.nn.ParameterList(
        torch.nn.Parameter(torch.zeros(2, dtype=getattr(torch, name)), requires_grad=False)
        for name in frozen
    )
    whole = torch.nn.Parameter(torch.tensor([1, 2], dtype=torch.uint8), requires_grad=False)
    adapter = torch.nn.Parameter(torch.tensor([0.1, 0.2]))
    half = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float16))
    taught.extend([whole, adapter, half])
    kept = adapter.data
    with generate._narrow(taught):
        assert adapter.dtype == getattr(torch, within)
        assert half.dtype == torch.float16
    assert adapter.data.data_ptr() == kept.data_ptr()
    assert adapter.tolist() == pytest.approx([0.1, 0.2])


def test_a_model_with_an_attention_of_its_own_is_left_to_generate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformers.LlamaModel, "_supports_attention_backend", False)
    assert not generate.can_generate(model(), settings())


def test_a_model_that_attends_eagerly_says_the_same_and_goes_on_eagerly() -> None:
    taught, (ids, mask) = model(), prompts()
    taught.set_attn_implementation("eager")
    expected = taught.generate(input_ids=ids, attention_mask=mask, generation_config=settings())
    assert torch.equal(generate.generate(taught, ids, mask, settings()), expected)
    assert taught.config._attn_implementation == "eager"
