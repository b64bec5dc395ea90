"""How a token is chosen, and kept to a grammar: `pytest tests/test_serve_engine_sampling.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from rig.errors import RigError
from serve.engine.sampling import Sampler, SamplerParams, _chain
from support import serve_gguf
from support.serve_desk import TEXT, Desk


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def desk(model: Path) -> Desk:
    return Desk(model)


def test_a_fixed_seed_repeats_and_none_is_another_each_time(desk: Desk) -> None:
    def ask(seed: int | None) -> list[int]:
        return desk.ask(TEXT, sampling=SamplerParams(temperature=1.5, seed=seed)).tokens

    assert ask(7) == ask(7)
    assert ask(0) == ask(0), "0 is a seed like any other"
    assert len({tuple(ask(None)) for _ in range(5)}) == 5
    assert ask(7) != ask(8)


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        (SamplerParams(temperature=5.0, top_k=1, seed=1), "one candidate is left"),
        (
            SamplerParams(temperature=5.0, top_k=0, top_p=0.0, seed=1),
            "only the likeliest is in the nucleus",
        ),
        (
            SamplerParams(temperature=5.0, top_k=0, top_p=1.0, min_p=1.0, seed=1),
            "none is as likely",
        ),
        (SamplerParams(temperature=0, top_k=3), "nothing is drawn at temperature 0"),
    ],
)
def test_cuts_that_leave_one_token_are_greedy(
    desk: Desk, sampling: SamplerParams, why: str
) -> None:
    assert desk.ask(TEXT, sampling=sampling).tokens == desk.ask(TEXT).tokens, why


@pytest.mark.parametrize(
    "asked",
    [
        SamplerParams(temperature=1.5, seed=3),
        SamplerParams(temperature=0.7, top_k=5, top_p=0.8, min_p=0.0, seed=3),
        SamplerParams(temperature=1.0, top_k=0, seed=3),
        SamplerParams(temperature=1.0, top_k=1000, typical_p=0.9, seed=3),
        SamplerParams(temperature=1.0, presence_penalty=2.0, seed=3),
        SamplerParams(temperature=0, logit_bias=((70, 3.0), (80, -1e9))),
        SamplerParams(temperature=1.2, logit_bias=((70, 9.0), (70, -2.0), (80, -1e9)), seed=3),
    ],
)
def test_the_short_list_of_candidates_is_drawn_from_as_llama_cpp_draws_from_all(
    desk: Desk, asked: SamplerParams
) -> None:
    """The same tokens as llama.cpp's own sampler, which looks at the whole vocabulary each time."""
    native = desk.native
    biases = (llama_cpp.llama_logit_bias * len(asked.logit_bias))(*asked.logit_bias)
    theirs = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for part in (
        llama_cpp.llama_sampler_init_logit_bias(native.n_vocab, len(biases), biases),
        _chain(native, asked),
    ):
        llama_cpp.llama_sampler_chain_add(theirs, part)
    ours = Sampler(native, asked)
    token, said = 65, []
    for pos in range(60):
        native.token[0], native.pos[0], native.seq[0], native.wants_logits[0] = token, pos, 0, 1
        assert native.decode(1) == 0
        before = native.row_logits(0).copy()
        expected = llama_cpp.llama_sampler_sample(theirs, native.ctx, 0)
        token = ours.sample_token(0)
        assert token == expected
        assert (native.row_logits(0) == before).all(), "the model's own scores are as they were"
        said.append(token)
    assert len(set(said)) > 5
    ours.close()
    llama_cpp.llama_sampler_free(theirs)


def test_a_bias_forbids_and_forces_tokens(desk: Desk) -> None:
    first = desk.ask(TEXT).tokens[0]
    forbidden = desk.ask(TEXT, sampling=SamplerParams(temperature=0, logit_bias=((first, -100.0),)))
    assert first not in forbidden.tokens
    forced = desk.ask(TEXT, sampling=SamplerParams(temperature=0, logit_bias=((65, 1e9),)))
    assert forced.text == "A" * 24


def test_a_penalty_ends_repetition(desk: Desk) -> None:
    plain = desk.ask(TEXT, max_tokens=60).tokens
    spread = desk.ask(
        TEXT, max_tokens=60, sampling=SamplerParams(temperature=0, presence_penalty=9.0)
    )
    assert len(set(plain)) < 40
    assert len(set(spread.tokens)) == 60


def test_an_end_token_ends_the_reply(desk: Desk) -> None:
    eot = desk.tokens("<|eot_id|>")[-1]
    said = desk.ask(TEXT, sampling=SamplerParams(temperature=0, logit_bias=((eot, 1e9),)))
    assert (said.finish, said.text, said.tokens) == ("stop", "", [eot])


def test_log_probabilities_are_the_model_s(desk: Desk) -> None:
    said = desk.ask(
        TEXT, max_tokens=5, logprobs=260, sampling=SamplerParams(temperature=0.7, seed=3)
    )
    assert len(said.logprobs) == 5
    for token, row in zip(said.tokens, said.logprobs, strict=True):
        (chosen, chance), *likeliest = row
        assert chosen == token
        assert dict(likeliest).get(token, chance) == chance
        chances = [p for _, p in likeliest]
        assert chances == sorted(chances, reverse=True)
        assert sum(2.718281828459045**p for p in chances) == pytest.approx(1, abs=0.01)


POST = {
    "type": "object",
    "properties": {
        "post": {"type": "string", "maxLength": 12},
        "n": {"type": "integer", "minimum": 3, "maximum": 17},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["post", "n", "kind"],
    "additionalProperties": False,
}


def test_a_schema_holds_whatever_is_sampled(desk: Desk) -> None:
    for seed in range(8):
        sampling = SamplerParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        matcher = desk.grammars.make_matcher({"schema": POST})
        said = desk.ask(TEXT, matcher=matcher, sampling=sampling, max_tokens=300)
        found = json.loads(said.text)
        assert said.finish == "stop"
        assert set(found) == {"post", "n", "kind"}
        assert 3 <= found["n"] <= 17
        assert len(found["post"]) <= 12
        assert found["kind"] in ("a", "b")


def test_a_model_that_keeps_to_the_grammar_by_itself_is_not_slowed(desk: Desk) -> None:
    said = desk.ask(TEXT, max_tokens=10)

    class Counting:
        """Passes on to a matcher that allows everything, and counts the looks at the vocabulary."""

        masks = 0

        def __init__(self, matcher: Any) -> None:
            self._matcher = matcher

        def __getattr__(self, name: str) -> Any:
            Counting.masks += name == "allowed_tokens"
            return getattr(self._matcher, name)

    anything = desk.grammars.make_matcher({"gbnf": r"root ::= [^\x00]*"})
    again = desk.ask(TEXT, max_tokens=10, matcher=Counting(anything))
    if "\ufffd" not in said.text:
        assert again.tokens == said.tokens
    strict = desk.grammars.make_matcher({"gbnf": 'root ::= "yes" | "no"'})
    before = Counting.masks
    assert desk.ask(TEXT, matcher=Counting(strict)).text in ("yes", "no")
    assert Counting.masks > before


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"schema": {"type": "strin"}}, "strin"),
        ({"schema": {"type": "text"}}, "Invalid type"),
        ({"schema": {"type": "string", "pattern": "(("}}, "regex"),
        ({"schema": {"$ref": "#/nowhere"}}, "nowhere"),
        ({"schema": {"$ref": "https://example.org/x"}}, "example.org"),
        ({"gbnf": "root ::= nope"}, "nope"),
        ({"gbnf": ""}, "root"),
    ],
)
def test_a_grammar_that_can_t_be_used_is_refused(
    desk: Desk, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(RigError) as error:
        desk.grammars.make_matcher(asked)
    assert says in error.value.message


def test_a_schema_nested_without_end_is_refused(desk: Desk) -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RigError, match="nested"):
        desk.grammars.make_matcher({"schema": schema})


TAGS = {
    "open": "<reasoning>",
    "close": "</reasoning>",
    "answer_open": "<answer>",
    "answer_close": "</answer>",
    "opened": False,
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a": 1}', True),
        ('<reasoning>2 < 3 </reason</reasoning>\n<answer>\n{"a": 1}\n</answer>\n', True),
        ('<reasoning>x</reasoning>{"a": 1}', True),
        ("<reasoning>x</reasoning>\n<answer>\n1\n</answer>", False),
        ("let me see", False),
    ],
)
def test_a_taught_model_may_think_before_its_json(desk: Desk, text: str, fits: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": False,
    }
    matcher = desk.grammars.make_matcher({"schema": schema, "thought": TAGS})
    tokens = desk.native.tokenize(text, special=True, add_special=False)
    taken = matcher.native.try_consume_tokens(tokens)
    assert (taken == len(tokens) and matcher.native.is_accepting()) == fits


def test_tags_that_are_tokens_of_their_own_may_enclose_the_thought(tmp_path: Path) -> None:
    path = serve_gguf.write(tmp_path / "think.gguf", words=("<think>", "</think>"))
    desk = Desk(path)
    tags = {"open": "<think>", "close": "</think>", "answer_open": "", "answer_close": ""}
    for opened, text in ((False, "<think>a</think>\n\n[1]"), (True, "a</think>[1]")):
        asked = {"schema": {"type": "array"}, "thought": tags | {"opened": opened}}
        matcher = desk.grammars.make_matcher(asked)
        tokens = desk.native.tokenize(text, special=True, add_special=False)
        assert matcher.native.try_consume_tokens(tokens) == len(tokens), matcher.native.get_error()
        assert matcher.native.is_accepting()
