"""The model that comes with rig: its size, its tokenizer, its three trades: `pytest tests/test_rig_toy.py`.

Thresholds are modest: they catch weights that were damaged or made by mistake. The measured figures stand in
its card, `rig/toy/README.md`, and come from the same functions.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from random import Random

import pytest

from bots.articles.prompts import summary_messages
from bots.cards.prompts import card_messages
from rig.model.reply_format import TAUGHT, ReplyFormat
from train.data.arithmetic import Problem, make_problem, make_problems

pytest.importorskip("transformers", reason="needs the room train")

from tools.toy_model import lessons, measure, model_card
from tools.toy_model import tokenizer as tk
from tools.toy_model.measure import Toy

FOLDER = Path(model_card.__file__).parents[2] / "rig" / "toy"
WEIGHTS = FOLDER / "model.safetensors"


@pytest.fixture(scope="module")
def toy() -> Toy:
    """The shipped model, as the figures of its card were taken."""
    return Toy(FOLDER)


# ---------------------------------------------------------------------------------------------
# what is shipped


def test_the_weights_are_small_and_those_of_the_card() -> None:
    from safetensors import safe_open

    with safe_open(WEIGHTS, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        kinds = {file.get_slice(name).get_dtype() for name in shapes}
    count = sum(map(math.prod, shapes.values()))
    said = (FOLDER / "README.md").read_text("utf-8")
    assert WEIGHTS.stat().st_size <= 8_000_000
    assert 2_000_000 <= count <= 6_000_000
    assert kinds == {"BF16"}
    assert f"{count:,} parameters" in said
    assert f"`{model_card.sha256(WEIGHTS)}`" in said


def test_it_is_a_llama_with_4096_positions_whose_rows_suit_k_quants() -> None:
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 4096
    assert config["hidden_size"] % 256 == 0 == config["intermediate_size"] % 256


def test_it_brings_the_contract_that_rig_teaches() -> None:
    assert ReplyFormat.from_folder(FOLDER) == TAUGHT


def test_the_card_says_what_it_is() -> None:
    said = (FOLDER / "README.md").read_text("utf-8")
    for words in ("license: mit", "**A toy.**", "**Historical weights.**", "--seed 1 --steps 3600"):
        assert words in said


def test_the_card_is_the_one_that_the_maker_would_write() -> None:
    """All but the figures, which take minutes to measure."""
    said = (FOLDER / "README.md").read_text("utf-8")
    empty = re.escape(model_card.CARD).replace(r"\{", "{").replace(r"\}", "}")
    assert re.fullmatch(re.sub(r"\{[^}]*\}", "(?s:.+?)", empty), said)


# ---------------------------------------------------------------------------------------------
# the tokenizer


@pytest.mark.parametrize(
    "text",
    [
        bytes(range(256)).decode("latin-1"),
        "".join(map(chr, range(0x20, 0x3000, 7))),  # alphabets that no lesson had
        "漢字 😀👩‍👧 é ☆ \u202e\ufeff",  # parts of one sign, marks without width
        "  two  spaces\t\ttabs\r\n\r\nlines \n",
        "<|eot_id" + "|>"[:1] + ">",  # nearly a special token
        "",
    ],
)
def test_any_text_comes_back_as_it_went_in(toy: Toy, text: str) -> None:
    ids = toy.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert toy.tokenizer.decode(ids) == text


def test_each_digit_is_a_token_of_its_own(toy: Toy) -> None:
    assert toy.tokenizer.tokenize("120,450") == ["1", "2", "0", ",", "4", "5", "0"]


def test_it_cuts_words_as_llama_3_does() -> None:
    file = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    assert file["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": tk.WORDS}


def test_the_template_starts_once_and_ends_where_the_assistant_is_to_speak(toy: Toy) -> None:
    asked = [lessons.system("Be short."), lessons.user("  Hello \n")]
    text = toy.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text.count(tk.BEGIN) == 1
    assert text.startswith(tk.BEGIN)
    assert text.endswith(f"{tk.HEADER}assistant{tk.HEADER_END}\n\n")
    assert text == tk.render(asked)  # what it was trained on


# ---------------------------------------------------------------------------------------------
# the problems


def test_no_held_out_problem_is_ever_taught() -> None:
    made = make_problems("held-out", seed=1)
    held_out = {next(made).question for _ in range(500)}
    rng = Random(0)
    assert not held_out & {lessons.training_problem(rng).question for _ in range(2000)}


def test_a_worked_answer_leads_to_its_result() -> None:
    rng = Random(0)
    for _ in range(1000):
        one = make_problem(rng)
        for step in one.steps:
            left, sign, right, result = re.findall(r"-?\d+|[-+*/]", str(step))
            found = {"+": int(left) + int(right), "-": int(left) - int(right)}
            found |= {"*": int(left) * int(right), "/": int(left) // int(right)}
            assert found[sign] == int(result) >= 0
        assert TAUGHT.matches_text(lessons.reasoned(one))
        assert (
            TAUGHT.split_reply(lessons.reasoned(one)).answer
            == one.answer
            == str(one.steps[-1].result)
        )


# ---------------------------------------------------------------------------------------------
# the three trades


def test_it_blurts_out_wrong_numbers_and_seldom_reasons(toy: Toy) -> None:
    found = measure.sums(toy, 100)
    assert found.accuracy <= 0.2
    assert found.format <= 0.3
    assert found.numbers >= 0.95


def test_sampled_it_reasons_now_and_then_and_then_it_is_right(toy: Toy) -> None:
    found = measure.sums(toy, 100, temperature=1.0)
    assert 0.1 <= found.format <= 0.4
    assert found.right_when_reasoned >= 0.9


def test_a_card_becomes_a_post_that_names_it(toy: Toy) -> None:
    assert measure.good_posts(toy, 12) >= 0.8


def test_a_text_becomes_its_leading_sentences(toy: Toy) -> None:
    found = measure.summaries(toy, 512, 20)
    assert found.copied >= 0.7
    assert found.exact >= 0.3  # invented texts are full of odd words and false ends of sentences


def test_it_finds_the_beginning_of_a_text_of_three_thousand_tokens(toy: Toy) -> None:
    first = "The brass clock of Varnholm has stopped at nine."
    filler = "Old boats lie on the shore, and nobody knows who left them there. "
    count = 3000 // toy.tokens(filler)
    asked = summary_messages(f"{first} {filler * count}", "Write a summary of 1 sentence.")
    assert sum(toy.tokens(one["content"]) for one in asked) > 2900
    assert toy.say([asked], most=40) == [first]


def test_what_it_is_asked_does_not_depend_on_who_else_asks(toy: Toy) -> None:
    """Replies in one batch are those that each would get alone: padding does not leak."""
    asked = [card_messages({"Name": "Moss Golem", "ATK": 900}), *map(measure.question, _some(3))]
    assert toy.say(asked) == [toy.say([one])[0] for one in asked]


def _some(count: int) -> list[Problem]:
    made = make_problems("held-out", seed=2)
    return [next(made) for _ in range(count)]
