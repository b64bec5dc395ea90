"""What posts earn in training, and what cheap ones do: `pytest tests/test_bots_lessons_rewards.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT

import rig.cli
from bots.cards.database import CardDatabase, CardPool
from bots.lessons.rewards import card_post
from rig.model.reply_format import PLAIN
from train.rewards import lint_command
from train.rewards.binding import bind_reward

GOLEM = {
    "Name": "Moss Golem", "Card": "Normal Monster", "Attribute": "EARTH", "Type": "Rock", "Level": "4",
    "ATK": "900", "DEF": "2100", "Text": "It has slept in the orchard wall for so long that nobody dares "
    "to trim it.",
}  # fmt: skip
MIRROR = {
    "Name": "Second Helping", "Card": "Normal Spell",
    "Text": "Pay 1000 LP; draw 2 cards, then discard 1 card.",
}  # fmt: skip
GOOD = (
    "Behind 2100 DEF, Moss Golem dreams on: a Rock of EARTH whose 900 ATK nobody has woken so far."
)
SECOND = (
    "Hungry hands love Second Helping, a Spell with a bill: 1000 LP for a draw of 2, "
    "and 1 to discard in the end."
)


def reply(post: str) -> str:
    return json.dumps({"post": post}, ensure_ascii=False)


def marks(*posts: str, facts: dict[str, str] = GOLEM, **columns: Any) -> list[float]:
    found = card_post([reply(post) for post in posts], [facts] * len(posts), **columns)
    return [mark or 0.0 for mark in found]


@pytest.mark.parametrize(("facts", "post"), [(GOLEM, GOOD), (MIRROR, SECOND)])
def test_a_post_that_says_something_true_in_its_own_words_earns_nearly_all(
    facts: dict[str, str], post: str
) -> None:
    assert marks(post, facts=facts)[0] > 0.7


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (GOOD, "Moss Golem is a Rock with 900 ATK and 2100 DEF."),
        ("Moss Golem is a Rock with 900 ATK and 2100 DEF.", "Moss Golem is a Rock."),
        ("Moss Golem is a Rock.", "Moss Golem"),
        (GOOD, GOOD.replace("2100", "2200")),
        (GOOD.replace("2100", "2200"), GOOD.replace("2100", "2200").replace("EARTH", "DARK")),
        (GOOD, GOOD.rstrip(".").replace(" ", "  ").replace("EARTH", "DARK") + "."),
        (GOOD, f"{GOOD} {GOOD}"),
        (GOOD, GOOD + " Read on at moss.example/golem"),
    ],
)
def test_marks_are_graded(better: str, worse: str) -> None:
    assert marks(better)[0] > marks(worse)[0]


def test_a_refused_post_earns_a_fifth_at_most_and_another_form_a_tenth() -> None:
    whole = marks(GOOD)[0]
    bare, fenced, more = card_post([GOOD], [GOLEM]), card_post([f"```{reply(GOOD)}```"], [GOLEM]), (
        card_post([reply(GOOD)[:-1] + ', "x": 1}'], [GOLEM])
    )  # fmt: skip
    assert [bare[0], fenced[0]] == pytest.approx([whole / 10] * 2, abs=1e-3)
    assert more[0] == pytest.approx(whole / 5, abs=1e-3)
    assert marks(GOOD + " Thanks, @konami.")[0] <= 0.2
    assert marks(GOOD + " word" * 60)[0] <= 0.2


def test_the_same_again_in_the_group_in_the_step_or_in_the_month_is_worth_little() -> None:
    alone = marks(GOOD)[0]
    assert max(marks(GOOD, GOOD, GOOD)) < 0.2
    other = "Who wakes Moss Golem pays for it: EARTH, Rock, level-headed, and 2100 DEF thick."
    assert marks(GOOD, other)[0] == alone
    assert marks(GOOD, earlier=[[GOOD.replace("Moss Golem", "Fern Golem")]])[0] < 0.2
    facts = [GOLEM | {"Name": name} for name in ("Moss Golem", "Fern Golem", "Clay Golem")]
    same = [reply(GOOD.replace("Moss Golem", one["Name"])) for one in facts]
    assert max(mark or 0 for mark in card_post(same, facts)) < 0.6


def test_columns_are_read_as_the_trainer_s_table_keeps_them() -> None:
    told = card_post(
        [[{"role": "assistant", "content": reply(GOOD)}]] * 2,
        facts=[json.dumps(GOLEM), None],
        limits=[json.dumps([{"outlet": "bluesky", "limit": 60}]), None],
        earlier=["[]", None],
        reply_format=PLAIN,
        subject=["Moss Golem", "An article"],
        trainer_state=None,
    )
    assert told[1] is None, "a lesson of another kind"
    assert told[0] is not None
    assert told[0] <= 0.2, "too long for that outlet"


def test_the_thought_before_the_answer_is_not_the_post() -> None:
    thought = "<reasoning>It is a rock.</reasoning>\n<answer>{}</answer>"
    assert card_post([thought.format(reply(GOOD))], [GOLEM]) == card_post([reply(GOOD)], [GOLEM])


def test_the_reward_is_found_through_the_entry_point_and_no_cheap_post_is_paid() -> None:
    done = CliRunner().invoke(rig.cli.main, ["rewards", "--check", "card_post", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    cheap = found["rewards"][0]["cheap"]
    wanted = {"name only", "text copied", "the same post for every card", "JSON in JSON"}
    assert wanted < set(cheap)
    assert max(cheap.values()) <= 0.2
    assert found["rewards"][0]["top"] > 0.7


def test_the_installed_package_offers_what_the_project_says() -> None:
    """Red in an environment that was made before an entry point was: `pip install -e '.[dev]'` again."""
    import tomllib
    from importlib.metadata import entry_points

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for group, offered in project["entry-points"].items():
        assert offered.items() <= {(one.name, one.value) for one in entry_points(group=group)}


def test_a_reward_that_pays_cheap_posts_is_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train.rewards.builtin import rewards

    def generous(completions: list[Any], facts: Any = None, **_: Any) -> list[float]:
        """Pay whatever has the name in it."""
        return [
            float(one["Name"] in str(said)) for said, one in zip(completions, facts, strict=True)
        ]

    for name in ("sample_rows", "worked_replies", "cheap_replies"):
        setattr(generous, name, getattr(card_post, name))
    monkeypatch.setitem(rewards, "generous", generous)
    found = lint_command.lint_reward("generous")
    assert not found["ok"]
    (problem,) = found["rewards"][0]["problems"]
    assert "name only (1.00)" in problem


def test_cheap_posts_earn_little_one_by_one_too() -> None:
    reward: Any = bind_reward("card_post")
    rows = card_post.sample_rows()  # type: ignore[attr-defined]
    with CardDatabase.open_samples() as database:
        assert len(rows) == len(database.pool_ids(CardPool()))
    for row in rows:
        for kind, (said,) in card_post.cheap_replies([row]).items():  # type: ignore[attr-defined]
            if kind != "the same post for every card":  # of the one card that it is about
                (mark,) = reward(completions=[said], facts=[row["facts"]])
                assert mark <= 0.2, f"{kind}: {said}"
