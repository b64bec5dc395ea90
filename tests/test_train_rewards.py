"""pytest tests/test_train_rewards.py"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rig.errors import WrongUse
from rig.model.reply_format import TAUGHT, ReplyFormat
from train.data import answers
from train.rewards.binding import bind_reward, list_rewards
from train.rewards.builtin import completion_text, rewards

SAMPLE = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"

LAYOUTS = {
    "many lines": "<reasoning>\n6*9 = 54\n54-12 = 42\n</reasoning>\n<answer>\n{}\n</answer>\n",
    "one line each": "<reasoning>\n6*9-12 = 42\n</reasoning>\n<answer>\n{}\n</answer>\n",
    "inline": "<reasoning>6*9-12 = 42</reasoning><answer>{}</answer>",
}
DAMAGED = {
    "wrong answer": LAYOUTS["many lines"].format("43"),
    "no tags": "42 it is, since 6*9 = 54",
    "endless": "so it is 42, and " * 400,
    "nothing": "",
}
TOP = {"correctness_reward_func": 2.0} | dict.fromkeys(
    (
        "int_reward_func",
        "strict_format_reward_func",
        "soft_format_reward_func",
        "xmlcount_reward_func",
    ),
    0.5,
)
"""The notebook's own scale; every other reward's top mark is 1.0."""


def chat(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def columns(count: int, **more: Any) -> dict[str, Any]:
    """All that TRL 1.14.2 passes besides the completions, and a column of the data's own."""
    return {
        "prompts": [[{"role": "user", "content": "6*9-12?"}]] * count,
        "completion_ids": [[1, 2, 3]] * count,
        "trainer_state": object(),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
        "answer": ["42"] * count,
        "question": ["6*9-12?"] * count,
        "kind": ["two steps"] * count,
        **more,
    }


@pytest.mark.parametrize("name", sorted(rewards))
class TestTheContract:
    """What TRL asks of a reward, and what we ask besides."""

    def test_unknown_columns_are_ignored_and_each_completion_gets_a_mark(self, name: str) -> None:
        said = [layout.format(42) for layout in LAYOUTS.values()] + list(DAMAGED.values())
        marks = bind_reward(name)(completions=chat(*said), **columns(len(said)))
        assert len(marks) == len(said)
        assert all(
            mark is None or (isinstance(mark, float) and math.isfinite(mark)) for mark in marks
        )

    def test_it_gives_its_top_mark_to_the_gold_in_a_layout_and_less_to_some_damage(
        self, name: str
    ) -> None:
        reward, top = bind_reward(name), TOP.get(name, 1.0)
        golds = reward(completions=chat(*(v.format(42) for v in LAYOUTS.values())), **columns(3))
        damaged = reward(completions=chat(*DAMAGED.values()), **columns(len(DAMAGED)))
        assert max(mark for mark in golds if mark is not None) == top
        assert min(mark for mark in damaged if mark is not None) < top
        assert max(mark for mark in damaged if mark is not None) <= top

    def test_it_pickles_and_keeps_its_name(self, name: str) -> None:
        reward = bind_reward(name)
        again = pickle.loads(pickle.dumps(reward))
        assert reward.__name__ == again.__name__ == name
        said = chat(LAYOUTS["inline"].format(42))
        assert again(completions=said, **columns(1)) == reward(completions=said, **columns(1))

    def test_plain_text_counts_like_a_conversation(self, name: str) -> None:
        text = LAYOUTS["many lines"].format(42)
        reward = bind_reward(name)
        assert reward(completions=[text], **columns(1)) == reward(
            completions=chat(text), **columns(1)
        )

    def test_its_docstring_says_what_earns_the_mark(self, name: str) -> None:
        assert len(list_rewards()[name]) > 30
        assert (inspect.getdoc(rewards[name]) or "").count(">>>")


@pytest.mark.parametrize("layout", ["many lines", "one line each", "inline"])
def test_the_sound_rewards_accept_every_layout(layout: str) -> None:
    said = chat(LAYOUTS[layout].format("$42.00"))
    for name in ("correct", "close", "format", "tags", "length", "unrepeated"):
        assert bind_reward(name)(completions=said, **columns(1)) == [1.0], name


def test_every_gold_of_gsm8k_gets_the_top_mark_in_every_dress(shared: Path) -> None:
    golds = []
    for side in ("train", "test"):
        with (shared / "data" / "gsm8k" / f"{side}.jsonl").open(encoding="utf-8") as lines:
            golds += [answers.extract_gold_answer(json.loads(line)["answer"]) for line in lines]
    assert len(golds) == 7473 + 660
    dresses = ("{}", "${}", "{}.00", "\\boxed{{{}}}", "{} pairs of shoes.")
    for at, dress in enumerate(dresses):
        said = [LAYOUTS["many lines"].format(dress.format(gold)) for gold in golds]
        if at == 2:  # without its commas, too
            said = [LAYOUTS["inline"].format(dress.format(gold.replace(",", ""))) for gold in golds]
        assert set(bind_reward("correct")(completions=said, answer=golds)) == {1.0}
    wrong = [LAYOUTS["many lines"].format(gold + "1") for gold in golds]
    assert set(bind_reward("correct")(completions=wrong, answer=golds)) == {0.0}


@pytest.mark.parametrize(
    ("said", "total", "why"),
    [
        (LAYOUTS["one line each"], 3.5, "the most there is, for one line each"),
        (LAYOUTS["many lines"], 3.0, "the layout that its own prompt asks for earns less"),
        (LAYOUTS["inline"], 3.0, "and so does a layout it never asks for"),
        ("{}", 2.5, "a bare number without any tag"),
        ("${}", 0.0, "the same with a dollar sign"),
        (LAYOUTS["one line each"].replace("{}", "${}"), 1.0, "a right answer with its unit"),
    ],
)
def test_the_notebook_pays_what_was_measured_of_it(said: str, total: float, why: str) -> None:
    marks = [rewards[name](completions=chat(said.format("476")), answer=["476"])[0] for name in TOP]
    assert math.isclose(sum(marks), total, abs_tol=1e-9), why


def test_the_notebooks_tag_count_charges_the_whole_reply_for_a_missing_newline() -> None:
    whole = LAYOUTS["one line each"].format("476")
    cut = whole.rstrip()
    marks = rewards["xmlcount_reward_func"](completions=chat(whole, cut, whole + "x" * 600))
    assert marks == pytest.approx([0.5, 0.5 - 0.001 * len(cut) + 0.001, 0.5 - 1.2], abs=1e-9)


def test_a_row_without_gold_is_skipped() -> None:
    said = chat(LAYOUTS["inline"].format(42), LAYOUTS["inline"].format(42))
    assert bind_reward("correct")(completions=said, answer=[None, "42"]) == [None, 1.0]
    assert bind_reward("close")(completions=said, answer=["", "42"]) == [None, 1.0]


def test_a_right_answer_without_its_block_pays_only_where_the_recipe_says_so() -> None:
    said = chat("It makes 42.")
    assert bind_reward("correct")(completions=said, answer=["42"]) == [0.0]
    assert bind_reward("correct", {"lenient": True})(completions=said, answer=["42"]) == [1.0]


def test_repeating_an_answer_block_does_not_pay() -> None:
    hedge = "<reasoning>hm</reasoning><answer>41</answer><answer>42</answer>"
    for name in ("correct", "format", "close"):
        assert bind_reward(name)(completions=[hedge], answer=["42"]) == [0.0], name


def test_tags_out_of_order_pay_for_one_pair_at_most() -> None:
    assert bind_reward("tags")(completions=["</answer><answer></reasoning><reasoning>"]) == [0.25]


def test_another_contract_is_rewarded_by_its_own_tags() -> None:
    reply_format = ReplyFormat("Think.", "<think>", "</think>", "<final>", "</final>")
    said = ["<think>6*9-12</think><final>42</final>"]
    for name in ("correct", "format", "tags"):
        reward = pickle.loads(pickle.dumps(bind_reward(name, {}, reply_format)))
        assert reward(completions=said, answer=["42"]) == [1.0]
        assert bind_reward(name, {}, TAUGHT)(completions=said, answer=["42"]) == [0.0]


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(
        WrongUse, match="There is no reward called 'corect'; did you mean 'correct'"
    ):
        bind_reward("corect")


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(WrongUse, match="has no option 'mots'; did you mean 'most'"):
        bind_reward("length", {"mots": 3})
    with pytest.raises(WrongUse, match="'reply_format'"):
        bind_reward("format", {"reply_format": "?"})
    with pytest.raises(WrongUse, match="it has none"):
        bind_reward("int_reward_func", {"x": 1})


OWN = '''
def vowels(completions, *, wanted=1, **_):
    """1.0 for enough vowels."""
    return [float(sum(c in "aeiou" for c in said[0]["content"]) >= wanted) for said in completions]

async def slow(completions, *, mark=0.5, **_):
    """Asks somebody else."""
    return [mark for _ in completions]

def fixed(completions):
    return [1.0 for _ in completions]
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def test_a_reward_of_ones_own_is_named_by_its_file_and_pickles_into_another_process(
    own: Path, tmp_path: Path
) -> None:
    reward = bind_reward(f"{own}:vowels", {"wanted": 3})
    assert reward.__name__ == "vowels"
    assert reward(completions=chat("aei", "xyz"), **columns(2)) == [1.0, 0.0]
    (tmp_path / "reward.pickle").write_bytes(pickle.dumps(reward))
    again = (
        "import pickle, sys; reward = pickle.load(open(sys.argv[1], 'rb')); "
        "print(reward(completions=[[{'content': 'aei'}]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", again, tmp_path / "reward.pickle"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout.strip() == "[1.0]"


def test_an_async_reward_stays_async_with_options(own: Path) -> None:
    reward: Any = bind_reward(f"{own}:slow", {"mark": 0.7})
    assert inspect.iscoroutinefunction(reward.__call__)  # how TRL looks at an instance
    assert asyncio.run(reward(completions=chat("a"))) == [0.7]


def test_a_reward_that_refuses_unknown_columns_is_refused(own: Path) -> None:
    with pytest.raises(WrongUse, match=r"refuses unknown columns: end its parameters with `\*\*_`"):
        bind_reward(f"{own}:fixed")


def test_a_column_named_like_an_option_does_not_override_it() -> None:
    assert bind_reward("length", {"most": 4})(completions=["abcd"], most=[1]) == [1.0]


def test_the_rewards_need_no_torch() -> None:
    probe = (
        "import sys, train.rewards.binding; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    heavy = {"torch", "numpy", "transformers", "trl", "datasets", "math_verify", "sympy"}
    assert not set(done.stdout.split()) & heavy


def test_text_of_takes_the_last_message() -> None:
    assert (
        completion_text([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
        == "!"
    )
    assert completion_text([{"role": "assistant", "content": None}]) == ""
