"""pytest tests/test_train_rewards_own.py"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from rig.errors import RigError, WrongUse
from train.rewards.binding import bind_reward

KEYWORDS = """
def exact(completions, answer, **kwargs):
    return [1.0 if a in c[-1]["content"] else 0.0 for c, a in zip(completions, answer)]
def wants_solution(completions, solution, **kwargs):
    return [float(s in c[-1]["content"]) for c, s in zip(completions, solution)]
def as_string(prompts, completions, answer, **kwargs):
    return [float(c.strip() == a) for c, a in zip(completions, answer)]
def numpyish(completions, **kwargs):
    import numpy as np
    return np.array([0.5 for _ in completions])
def tensorish(completions, **kwargs):
    import torch
    return torch.tensor([float(len(c[-1]["content"])) for c in completions])
def bools(completions, **kwargs):
    return [len(c[-1]["content"]) > 1 for c in completions]
def nothing(completions, **kwargs):
    return None
def one_for_all(completions, **kwargs):
    return 1.0
def no_keywords(completions, answer):
    return [0.0 for _ in completions]
def strict(completions, *, strict=True, level=None, **_):
    return [float(strict is True) + float(level is not None) for _ in completions]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    path = tmp_path / "kw.py"
    path.write_text(KEYWORDS, encoding="utf-8")

    def call(name: str, **columns: Any) -> list[float | None]:
        said = [[{"role": "assistant", "content": text}] for text in ("42", "7")]
        reward: Any = bind_reward(f"{path}:{name}")
        marks: list[float | None] = reward(
            prompts=["?", "?"], completions=said, answer=["42", "42"], **columns
        )
        return marks

    yield call
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("exact", [1.0, 0.0]),
        ("numpyish", [0.5, 0.5]),
        ("tensorish", [2.0, 1.0]),
        ("bools", [1.0, 0.0]),
    ],
)
def test_a_reward_as_notebooks_have_it_works(name: str, marks: list[float], mine: Any) -> None:
    if name in ("numpyish", "tensorish"):
        pytest.importorskip("torch", reason="needs the training room: pip install -e '.[train]'")
    assert mine(name) == marks


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wants_solution", "failed with TypeError: wants_solution() missing 1 required positional"),
        ("as_string", "failed with AttributeError: 'list' object has no attribute 'strip'"),
        ("nothing", "gave None: it must return one number or None for each completion"),
        ("one_for_all", "gave 1.0: it must return one number or None for each completion"),
    ],
)
def test_a_reward_that_does_not_work_is_one_sentence(name: str, sentence: str, mine: Any) -> None:
    with pytest.raises(RigError) as caught:
        mine(name)
    assert sentence in caught.value.message


def test_a_reward_that_takes_no_other_columns_is_refused_at_once(mine: Any) -> None:
    with pytest.raises(WrongUse, match=r"refuses unknown columns: end its parameters with `\*\*_`"):
        mine("no_keywords")


def test_a_column_sets_no_option_but_is_given_to_a_parameter_without_a_default(mine: Any) -> None:
    assert mine("strict", strict=[False, False]) == [1.0, 1.0]
    assert mine("strict", level=[1, 2], self=[0, 0]) == [2.0, 2.0]


def test_a_helper_beside_the_rewards_file_is_found_and_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "rig_test_helpers.py").write_text(
        "def number(text): return text.strip()\n", "utf-8"
    )
    (tmp_path / "json.py").write_text("raise RuntimeError('not this one')\n", "utf-8")
    (tmp_path / "mine.py").write_text(
        "from rig_test_helpers import number\n"
        "def exact(completions, answer, **_):\n"
        "    import json\n"
        "    return [float(number(c) == json.loads(a)) for c, a in zip(completions, answer)]\n",
        "utf-8",
    )
    try:
        reward: Any = bind_reward(f"{tmp_path / 'mine.py'}:exact")
        again = pickle.loads(pickle.dumps(reward))
        for one in (reward, again):
            assert one(completions=[" 42 ", "7"], answer=['"42"', '"42"']) == [1.0, 0.0]
        assert sys.path.count(str(tmp_path)) == 1
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["rig_test_helpers"]
