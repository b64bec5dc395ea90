"""pytest tests/test_train_rewards_lint_near.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rig.cli import main
from rig.model.reply_format import TAUGHT
from train.data import answers
from train.rewards import lint
from train.rewards.lint import RewardReport

pytest.importorskip("math_verify", reason="needs the training room: pip install -e '.[train]'")

ALGEBRA = [
    ("3x^2", "3"), ("x+1", "1"), ("n-1", "n+1"), ("2i", "2"), ("x > 5", "x < 5"), (r"\frac{a}{2}", "2"),
    ("x^2", "x^3"), ("O(n^2)", "O(n^3)"), (r"3\frac{1}{2}", "31/2"),
]  # fmt: skip


def rows(*golds: str) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": f"{n}?"}], "question": f"{n}?", "answer": gold}
        for n, gold in enumerate(golds)
    ]


def check(name: str, *golds: str) -> RewardReport:
    (found,), _ = lint.lint_rewards([(name, 1.0, {})], rows(*golds), TAUGHT)
    return found


def own(tmp_path: Path, equal: str) -> str:
    path = tmp_path / "own_equality.py"
    path.write_text(
        "import re\n"
        "def block(c): return c[-1]['content'].rpartition('<answer>')[2].partition('</answer>')[0].strip()\n"
        "def numbers(text): return re.findall(r'[0-9]+', text)\n"
        "def mine(completions, answer, **_):\n"
        f"    return [float({equal}) for said, a in zip(map(block, completions), answer)]\n",
        encoding="utf-8",
    )
    return f"{path}:mine"


def test_the_sound_reward_has_nothing_against_any_kind_of_gold() -> None:
    golds = [gold for gold, _ in ALGEBRA] + [
        "42",
        "1,000",
        "42 cups",
        "(3,4)",
        "Paris",
        "B",
        "0.3333333333333333",
    ]
    golds += [
        "50%",
        "1/2",
        "x > y",
        '["half", "0.5"]',
        "-7",
        "5 million",
        "3 1/2 cups",
        "10:30",
        "1, -2",
    ]
    found = check("correct", *golds)
    assert found.problems == []
    assert found.bare == {"n": len(golds), "top": len(golds), "pair": None}
    assert found.near["paid"] == 0
    assert found.near["n"] > len(golds)


def test_a_reward_that_keeps_only_the_numbers_pays_near_misses(tmp_path: Path) -> None:
    name = own(tmp_path, "numbers(said)[:1] == numbers(a)[:1]")
    found = check(name, "42", *(gold for gold, _ in ALGEBRA))
    assert any("near misses are paid as the gold is ('" in said for said in found.problems)
    assert found.near["paid"] > 4


def test_a_reward_that_looks_for_the_gold_within_the_answer_pays_a_longer_number(
    tmp_path: Path,
) -> None:
    found = check(own(tmp_path, "a in said"), "42", "7")
    assert found.problems == ["2 of 2 near misses are paid as the gold is ('421' for '42')."]


def test_a_gold_that_the_bare_answer_cannot_earn_is_named(tmp_path: Path) -> None:
    found = check(own(tmp_path, "said == a"), "42 cups", "7")
    assert found.problems == [
        "1 of 2 gold answers are not earned by the bare answer that a model would write "
        "('42' for '42 cups')."
    ]


def test_a_reward_for_the_form_is_not_asked_for_the_answer() -> None:
    assert check("format", "42 cups", "3x^2").problems == []


@pytest.mark.parametrize(
    ("gold", "bare"),
    [("42 cups in all", "42"), ("The answer is 42.", "42"), ("5 million", "5 million"),
     ("3 1/2 cups", "3 1/2 cups"), ("1,000", "1,000"), ("-4.5 km", "-4.5"),
     ("3x^2", "3x^2"), ("Apollo 11", "Apollo 11"),
     ("Paris", "Paris")],
)  # fmt: skip
def test_the_bare_answer_is_what_a_model_would_write(gold: str, bare: str) -> None:
    assert lint.bare_reply(gold) == bare


@pytest.mark.parametrize(
    "gold", ["42", "-7", "0", "0.5", "3x^9", "x", "z", "A", "Paris", "x<y", "a-b", "(9, 4)", "½"]
)
def test_a_near_miss_is_wrong_and_of_the_same_shape(gold: str) -> None:
    found = lint.near_misses(gold)
    assert not any(answers.matches_gold(near, gold) for near in found)
    assert found or gold == "½"


def test_the_check_of_a_recipe_says_it_and_wrong_algebra_earns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [(f"Case {n}: simplify.", *pair) for n, pair in enumerate(ALGEBRA * 3)]
    lines = [json.dumps({"question": q, "answer": gold}) for q, gold, _ in asked]
    Path("rows.jsonl").write_text("\n".join(lines), "utf-8")
    with Path("samples.jsonl").open("w", encoding="utf-8") as file:
        for question, _, wrong in asked:
            for said in (wrong, "zzz"):
                reply = lint.format_reply("many lines", said, TAUGHT)
                line = {
                    "step": 1,
                    "prompt": [{"role": "user", "content": question}],
                    "completion": [{"role": "assistant", "content": reply}],
                }
                file.write(json.dumps(line) + "\n")
    command = ["rewards", "--check", "toy-arithmetic", "--set", "data.source=rows.jsonl", "--set"]
    command += ["data.held_out=4", "--samples", "samples.jsonl", "--json"]
    done = CliRunner().invoke(main, command)
    found = json.loads(done.output)
    correct = next(one for one in found["rewards"] if one["name"] == "correct")
    assert (correct["real"]["mean"], correct["real"]["fired"], correct["problems"]) == (0, 0, [])
    assert correct["golds"] == {"n": 27, "top": 27}
