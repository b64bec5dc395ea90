"""All that a check of rewards says, figure by figure: `pytest tests/test_train_rewards_lint_report.py`."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rig.model.reply_format import TAUGHT
from train.rewards import lint, lint_command
from train.rewards.binding import bind_reward
from train.rewards.builtin import rewards
from train.rewards.lint import RewardReport

Row = dict[str, Any]


def rows(*golds: str) -> list[Row]:
    return [
        {"prompt": [{"role": "user", "content": f"{n}?"}], "question": f"{n}?", "answer": gold}
        for n, gold in enumerate(golds)
    ]


def own(tmp_path: Path, body: str) -> str:
    path = tmp_path / "reported.py"
    path.write_text(
        "def block(c): return c[-1]['content'].rpartition('<answer>')[2].partition('</answer>')[0].strip()\n"
        f"def mine(completions, answer, **columns):\n    {body}\n",
        "utf-8",
    )
    return f"{path}:mine"


def check(name: str, *golds: str, real: Any = (), weight: float = 1.0) -> RewardReport:
    (found,), _ = lint.lint_rewards([(name, weight, {})], rows(*golds), TAUGHT, real)
    return found


def test_a_reward_is_called_as_the_trainer_calls_it() -> None:
    seen: dict[str, Any] = {}

    def reward(**columns: Any) -> Any:
        seen.update(columns)
        return [0.25, 0.75]

    assert lint.call_reward(reward, rows("4", "5"), ["a" * 9, "b"]) == [0.25, 0.75]
    assert seen["prompts"] == [
        [{"role": "user", "content": "0?"}],
        [{"role": "user", "content": "1?"}],
    ]
    assert seen["completions"] == [
        [{"role": "assistant", "content": "a" * 9}], [{"role": "assistant", "content": "b"}],
    ]  # fmt: skip
    assert [len(ids) for ids in seen["completion_ids"]] == [3, 1]
    state = seen["trainer_state"]
    assert (state.global_step, state.max_steps, state.epoch) == (0, 1, 0.0)
    assert (seen["answer"], seen["question"]) == (["4", "5"], ["0?", "1?"])
    seen["log_extra"]("said", ["a", "b"])
    seen["log_metric"]("mean", 0.5)
    assert lint.call_reward(lambda completions, **_: [], [], []) == []


def test_an_async_reward_is_waited_for() -> None:
    async def slow(completions: Any, **_: Any) -> list[float]:
        return [float(len(completions))] * len(completions)

    reward: Any = slow
    assert lint.call_reward(reward, rows("4", "5"), ["a", "b"]) == [2.0, 2.0]


def test_the_damaged_replies_of_a_number_and_of_words() -> None:
    thought = "First I read the question.\nThen I work it out."
    whole = f"<reasoning>\n{thought}\n</reasoning>\n<answer>\n{{}}\n</answer>\n"
    assert lint.damaged_replies("1,000", TAUGHT) == {
        "wrong answer": whole.format("1001"),
        "answer alone": "1,000",
        "no tags": "First I read the question. Then I work it out.\nThe answer is 1,000.",
        "two answers": whole.format("1,000") + "<answer>\n1001\n</answer>\n",
        "cut off": whole.format("1,000")[:58],
        "endless": "I read the question once more. " * 400,
        "empty": "",
    }
    assert lint.damaged_replies("Paris", TAUGHT)["wrong answer"] == whole.format("not Paris")


@pytest.mark.parametrize(
    ("gold", "near"),
    [
        ("42", ["421"]), ("-7", ["-71"]), ("1,000", ["10001"]), ("$5 a day", ["$51 a day"]),
        ("0.5", ["0.6"]),
        ("1/2", ["2/2"]), ("0.9", ["0.8"]), ("3x^9", ["4x^9", "3"]), ("x^9", ["x^8", "9"]),
        ("0x", ["0y"]), ("x0", ["y0"]),
        ("2.5x", ["3.5x", "2.5"]), ("x<y", ["x>y"]), ("x>y", ["x<y"]), ("a+b", ["a-b"]), ("a-b", ["a+b"]),
        ("a-b-c", ["a+b-c"]), ("x", ["y"]), ("z", ["y"]), ("Z", ["Y"]), ("Paris!", ["Parit!"]),
        ("½", []), ("", []),
    ],
)  # fmt: skip
def test_the_near_misses_of_a_gold(gold: str, near: list[str]) -> None:
    assert lint.near_misses(gold) == near


def test_every_figure_of_a_reward_that_knows_the_letters_alone(tmp_path: Path) -> None:
    name = own(tmp_path, "return [float(block(c) == a) for c, a in zip(completions, answer)]")
    assert check(name, "42", "1,000", "-7", "Paris", weight=0.5) == RewardReport(
        name=name,
        weight=0.5,
        top=1.0,
        gold={"many lines": 1.0, "one line each": 1.0, "inline": 1.0},
        golds={"n": 4, "top": 4},
        dress={"bare": 1.0, "$": 0.0, ".00": 0.0, "boxed": 0.0, "unit": 0.0},
        bare={"n": 4, "top": 4, "pair": None},
        near={"n": 4, "paid": 0, "pair": None},
        damaged={
            "wrong answer": 0.0, "answer alone": 1.0, "no tags": 0.0, "two answers": 0.0, "cut off": 0.0,
            "endless": 0.0, "empty": 0.0,
        },
        real=None,
        problems=[],
        remarks=["It pays less for the gold written as: $, .00, boxed, unit."],
    )  # fmt: skip


def test_a_mean_leaves_out_what_was_skipped_and_rounds_to_four_places(tmp_path: Path) -> None:
    body = (
        "return [None if a == '7' else float(block(c) == '1') for c, a in zip(completions, answer)]"
    )
    found = check(own(tmp_path, body), "1", "2", "3", "7")
    assert found.gold["many lines"] == 0.3333
    assert found.golds == {"n": 4, "top": 2}, "a skipped gold has lost nothing"
    assert "2 of 4 gold answers get less than its top mark 1" in found.problems[0]


def test_what_pays_more_for_every_damage_is_told_so_and_that_it_sees_none(tmp_path: Path) -> None:
    body = (
        "return [1.0 if block(c) == a and c[-1]['content'].count('<answer>') == 1 else 2.0"
        " for c, a in zip(completions, answer)]"
    )
    found = check(own(tmp_path, body), "42", "7")
    assert found.problems == [
        "It pays more for damage than for the gold: wrong answer, answer alone, no tags, two answers, cut "
        "off, endless, empty.",
        "It sees no damage: every damaged reply gets as much as the gold.",
    ]
    assert found.near == {"n": 2, "paid": 2, "pair": ("421", "42")}


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        ("0.0", "It never fires: gold and damage all get 0."),
        ("0.5", "It always fires: gold and damage all get 0.5."),
        ("-1.0", "It always fires: gold and damage all get -1."),
    ],
)
def test_what_does_not_tell_gold_from_damage(tmp_path: Path, mark: str, sentence: str) -> None:
    assert check(own(tmp_path, f"return [{mark} for _ in completions]"), "42").problems == [
        sentence
    ]


def test_what_fires_in_one_layout_alone_names_it(tmp_path: Path) -> None:
    body = "return [0.25 + ('<answer>42' in c[-1]['content']) for c in completions]"
    assert check(own(tmp_path, body), "42").problems == [
        "It can never fire in the form that the system prompt asks for, where gold and damage get 0.25: "
        "only the layout 'inline' earns it."
    ]


def test_the_rewards_of_a_recipe_are_weighed_together() -> None:
    def together(*named: tuple[str, float]) -> list[str]:
        given = [(name, weight, dict[str, Any]()) for name, weight in named]
        return lint.lint_rewards(given, rows("42"), TAUGHT)[1]

    assert together(("correct", 1.0)) == []
    assert together(("correct", 0.0)) == [], "one that does not count is not asked"
    assert together(("tags", 1.0)) == [
        "Together the rewards pay 1 for 'wrong answer' and 1 for the gold."
    ]
    assert together(("tags", 1.0), ("correct", 0.5)) == []
    assert together(("tags", 1.0), ("correct", -0.5)) == [
        "Together the rewards pay 1 for 'wrong answer' and 0.5 for the gold.",
        "Together the rewards pay 0.5 for 'two answers' and 0.5 for the gold.",
    ]


def test_real_completions_are_counted_prompt_by_prompt(tmp_path: Path) -> None:
    body = (
        "return [None if c[-1]['content'] == '?' else len(c[-1]['content']) / 100"
        " for c in completions]"
    )
    asked = rows("42", "7", "8")
    real = [
        (asked[0], ["a" * 50, "a" * 50]),
        (asked[1], ["a" * 10, ""]),
        (asked[2], ["?", "a" * 90]),
    ]
    found = check(own(tmp_path, body), "42", "7", "8", real=real)
    assert found.real == {"n": 5, "mean": 0.4, "fired": 0.8, "top": 0.0, "signal": 0.3333}
    none = check(own(tmp_path, body), "42", real=[(asked[0], ["?", "?"])])
    assert none.real == {"n": 0, "mean": 0.0, "fired": 0.0, "top": 0.0, "signal": 0.0}
    assert none.remarks == []


# ----------------------------------------------------------------------------------------------------------
# The command


def test_a_gold_and_a_mark_have_to_come_in_pairs() -> None:
    for name in ("correct", "close", "correctness_reward_func"):
        with pytest.raises(ValueError, match=r"longer|shorter"):
            rewards[name](completions=["4", "5"], answer=["4"])


def test_what_the_options_are_unless_a_recipe_says_so() -> None:
    assert bind_reward("length")(completions=["a" * 2000, "a" * 3000]) == [1.0, 0.5]
    said = ["one two three one two three", "one two three four one two three four"]
    assert bind_reward("unrepeated")(completions=said) == [1.0, 0.8]


def printed(found: dict[str, Any], width: int = 120) -> list[str]:
    out = io.StringIO()
    lint_command.print_lint_report(found, Console(file=out, width=width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def reported(**changes: Any) -> dict[str, Any]:
    return {
        "name": "correct", "weight": 1.0, "top": 1.0, "gold": {"many lines": 0.975}, "real": None,
        "damaged": {"wrong answer": 0.0, "no tags": 0.975, "empty": None}, "cheap": {},
        "problems": [], "remarks": [],
    } | changes  # fmt: skip


def test_the_report_is_a_table_and_sentences() -> None:
    one = reported()
    other = reported(
        name="a_long_name_of_ones_own",
        weight=0.25,
        gold={"many lines": None},
        problems=["It [never] fires."],
    )
    blind = reported(
        name="tags[/x]", damaged={"empty": 0.975, "no tags": 1.0}, remarks=["It [teaches] nothing."]
    )
    found = {
        "ok": False, "golds": 40, "real_source": None, "rewards": [one, other, blind],
        "problems": ["Together they pay [nothing]."], "notes": ["Not tried."],
    }  # fmt: skip
    assert printed(found) == [
        "40 gold answers",
        "reward                   weight  gold        does not see",
        "correct                  1       0.975 of 1  no tags",
        "a_long_name_of_ones_own  0.25",
        "tags[/x]                 1       0.975 of 1  anything",
        "a_long_name_of_ones_own: It [never] fires.",
        "tags[/x]: It [teaches] nothing.",
        "Together they pay [nothing].",
        "Not tried.",
    ]
    assert "a_long_name_of_ones_own" in " ".join(printed(found, 40)), "a name is never cut"


def test_the_report_of_real_completions_has_three_more_columns() -> None:
    real = {"mean": 0.254, "fired": 0.5, "signal": 1.0}
    found = {
        "ok": True, "golds": 1, "real_source": "[run]/a", "rewards": [reported(real=real), reported()],
        "problems": [], "notes": [],
    }  # fmt: skip
    assert printed(found) == [
        "1 gold answers; real completions from [run]/a",
        "reward   weight  gold        does not see  real  fired  signal",
        "correct  1       0.975 of 1  no tags       0.25  50%    100%",
        "correct  1       0.975 of 1  no tags",
        "Every reward gives its top mark to the gold and less to damage.",
    ]


@pytest.mark.parametrize(
    ("size", "gpu", "said"),
    [
        (0, False, "holds no weights"),
        (3_000_000_000, False, None),
        (
            3_100_000_000,
            False,
            "is 3.1 GB, too slow without a GPU; after a run, give its folder with --samples.",
        ),
        (3_100_000_000, True, None),
    ],
)
def test_a_model_is_sampled_where_that_takes_no_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, gpu: bool, said: str | None
) -> None:
    torch = pytest.importorskip(
        "torch", reason="needs the training room: pip install -e '.[train]'"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(size)  # a hole: it takes no room
    recipe: Any = SimpleNamespace(model=SimpleNamespace(name=str(tmp_path), revision=None))
    reason = lint_command._not_at_hand(recipe)
    assert (reason is None) == (said is None)
    assert (said or "") in (reason or "")


def test_a_model_of_the_hub_is_looked_for_here_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    asked: list[Any] = []

    def found(name: str, **how: Any) -> str:
        asked.append((name, how))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", found)
    recipe: Any = SimpleNamespace(model=SimpleNamespace(name="nobody/model", revision="abc"))
    assert lint_command._not_at_hand(recipe) is None
    assert asked == [("nobody/model", {"revision": "abc", "local_files_only": True})]
