"""pytest tests/test_train_rewards_lint.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rig.cli import main
from rig.model.reply_format import TAUGHT
from support.one_thread import one_thread  # noqa: F401
from train.data import dataset
from train.rewards import lint, lint_command
from train.rewards.builtin import rewards
from train.rewards.lint import RewardReport

SAMPLE = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"
SOUND = ("correct", "close", "format", "tags", "length", "unrepeated")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    found = dataset.load_splits(str(SAMPLE), held_out=8)
    return found.train + found.held_out


def check(
    rows: list[Row], *names: str, real: list[tuple[Row, list[str]]] | None = None
) -> tuple[dict[str, RewardReport], list[str]]:
    tried, problems = lint.lint_rewards(
        [(name, 1.0, {}) for name in names], rows, TAUGHT, real or []
    )
    return {one.name: one for one in tried}, problems


def own(tmp_path: Path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(f"def mine(completions, answer, **_):\n    {body}\n", encoding="utf-8")
    return f"{path}:mine"


def test_the_sound_rewards_have_nothing_against_them(rows: list[Row]) -> None:
    found, problems = check(rows, *SOUND)
    assert {name: one.problems for name, one in found.items() if one.problems} == {}
    assert problems == []
    assert found["correct"].golds == {"n": 40, "top": 40}
    assert found["correct"].damaged["wrong answer"] == 0  # even of 109,200,000


def test_the_notebooks_format_rewards_can_never_fire_together_with_its_prompt(
    rows: list[Row],
) -> None:
    found, _ = check(rows, *(name for name in rewards if name.endswith("_func")))
    for name, layout in (
        ("strict_format_reward_func", "one line each"),
        ("soft_format_reward_func", "inline"),
    ):
        assert (
            "can never fire in the form that the system prompt asks for" in found[name].problems[0]
        )
        assert layout in found[name].problems[0]
    assert "8 of 40 gold answers" in found["int_reward_func"].problems[0]  # the commas and signs
    assert "written as: $, .00, boxed, unit" in found["correctness_reward_func"].remarks[0]
    assert found["correctness_reward_func"].damaged["answer alone"] == 2.0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return [0.0 for _ in completions]", "It never fires: gold and damage all get 0."),
        ("return [1.0 for _ in completions]", "It always fires: gold and damage all get 1."),
        ("return [None for _ in completions]", "It skips every gold"),
        (
            "return [float(a == '42') for a in answer]",
            "It always fires: gold and damage all get 0.025.",
        ),
        (
            "return [float('42' in c[0]['content']) for c in completions]",
            "39 of 40 gold answers get less than its top mark 1",
        ),
        ("return [-float(len(c[0]['content'])) for c in completions]", "It pays more for damage"),
        (
            "return [1.0]",
            "gave 1 marks to 40 completions: it must return one number or None for each.",
        ),
        (
            "return [1 / 0 for _ in completions]",
            "failed with ZeroDivisionError: division by zero (mine.py, line",
        ),
    ],
)
def test_a_bad_reward_of_ones_own_is_named(
    body: str, sentence: str, rows: list[Row], tmp_path: Path
) -> None:
    name = own(tmp_path, body)
    found, _ = check(rows, name)
    assert any(sentence in problem for problem in found[name].problems), found[name].problems


def test_a_recipe_that_pays_nothing_for_being_right_is_named(rows: list[Row]) -> None:
    _, problems = check(rows, "format", "length")
    assert problems == ["Together the rewards pay 2 for 'wrong answer' and 2 for the gold."]


def test_real_completions_show_what_never_fires_and_what_teaches_nothing(rows: list[Row]) -> None:
    def said(row: Row, right: bool) -> str:
        return lint.format_reply("many lines", row["answer"] if right else "0.123", TAUGHT)

    real = [(row, [said(row, at % 2 == 0), said(row, False)]) for at, row in enumerate(rows[:10])]
    found, _ = check(rows, "correct", "format", "strict_format_reward_func", real=real)
    assert found["correct"].real == {
        "n": 20,
        "mean": 0.25,
        "fired": 0.25,
        "top": 0.25,
        "signal": 0.5,
    }
    assert found["format"].remarks == [
        "Every real completion earns all of it: it teaches nothing new."
    ]
    never, _ = check(rows, "correct", real=[(rows[0], ["?", "!"])])
    assert never["correct"].remarks == [
        "No real completion earned it: nothing can be learnt from it yet."
    ]


# ----------------------------------------------------------------------------------------------------------
# The command

RECIPE = f"""
about = "a test"
[model]
name = "{{model}}"
precision = "32bit"
[data]
source = {json.dumps(str(SAMPLE))}
held_out = 8
[grpo]
max_completion_length = 16
[[rewards]]
name = "correct"
[[rewards]]
name = "{{reward}}"
weight = 0.2
"""


def recipe(folder: Path, reward: str = "format", model: str = "toy") -> str:
    path = folder / "mine.toml"
    path.write_text(RECIPE.format(reward=reward, model=model), encoding="utf-8")
    return str(path)


def test_the_list_names_every_reward_with_a_line() -> None:
    done = CliRunner().invoke(main, ["rewards"])
    assert done.exit_code == 0
    assert all(name in done.stdout for name in rewards)
    listed = json.loads(CliRunner().invoke(main, ["rewards", "--json"]).stdout)["rewards"]
    assert set(listed) >= set(rewards)


def test_a_check_samples_the_model_that_is_at_hand(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")
    done = CliRunner().invoke(
        main, ["rewards", "--check", recipe(tmp_path), "--attempts", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["ok"], found["golds"], found["real_source"]) == (True, 40, "toy")
    assert found["rewards"][0]["real"]["n"] == 32


def test_a_recipe_with_a_dead_reward_fails_its_check(tmp_path: Path) -> None:
    path = recipe(tmp_path, reward="soft_format_reward_func")
    done = CliRunner().invoke(main, ["rewards", "--check", path, "--no-real"])
    assert done.exit_code == 1
    assert "soft_format_reward_func: It can never fire" in done.stdout


def test_a_model_that_is_not_here_is_not_fetched_for_a_check(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")
    path = recipe(tmp_path, model="nobody/no-such-model")
    done = CliRunner().invoke(main, ["rewards", "--check", path, "--json"])
    assert done.exit_code == 0, done.output
    assert "nobody/no-such-model has not been downloaded yet" in json.loads(done.stdout)["notes"][0]


def test_a_runs_own_samples_are_real_completions_too(tmp_path: Path, rows: list[Row]) -> None:
    lines = [
        {"step": 1, "prompt": row["prompt"], "completion": [{"role": "assistant", "content": text}]}
        for row in rows[:6]
        for text in (lint.format_reply("inline", row["answer"], TAUGHT), "no idea")
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), "utf-8")
    for samples in (tmp_path, tmp_path / "samples.jsonl"):
        done = CliRunner().invoke(
            main, ["rewards", "--check", recipe(tmp_path), "--samples", str(samples), "--json"]
        )
        found = json.loads(done.stdout)["rewards"][0]["real"]
        assert (found["n"], found["fired"], found["signal"]) == (12, 0.5, 1.0)


def test_a_sample_without_words_is_silence_and_not_the_word_none(
    tmp_path: Path, rows: list[Row]
) -> None:
    silent = [[{"role": "assistant", "content": None}], None, ""]
    lines = [{"prompt": rows[0]["prompt"], "completion": each} for each in silent]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), "utf-8")
    ((row, texts),) = lint_command._from_samples(str(tmp_path), rows)
    assert (row, texts) == (rows[0], ["", "", ""])


def test_samples_of_other_problems_are_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"prompt": "What?", "completion": "x"}\n', "utf-8")
    done = CliRunner().invoke(
        main, ["rewards", "--check", recipe(tmp_path), "--samples", str(tmp_path)]
    )
    assert done.exit_code == 2
    assert "belongs to this recipe's problems" in " ".join(done.stderr.split())


def test_data_that_cannot_be_had_is_replaced_by_stand_ins_and_said(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the training room: pip install -e '.[train]'")
    text = RECIPE.replace(json.dumps(str(SAMPLE)), '"nobody/nothing"')
    path = tmp_path / "hub.toml"
    path.write_text(text.format(reward="format", model="toy"), encoding="utf-8")
    done = CliRunner().invoke(main, ["rewards", "--check", str(path), "--no-real", "--json"])
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["notes"][0].startswith(
        "Tried on stand-ins for the gold answers, because: The data set"
    )
