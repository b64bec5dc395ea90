"""pytest tests/test_train_eval_statistics.py"""

from __future__ import annotations

import itertools
import math

import pytest

from train.eval import statistics


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # the cases of Newcombe 1998, and all of ten
        (1, 29, 0.0061, 0.1718),
        (15, 148, 0.0624, 0.1605),
        (81, 263, 0.2553, 0.3662),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_the_interval_is_wilsons(successes: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_nothing_counted_says_nothing() -> None:
    assert statistics.wilson_interval(0, 0) == (0.0, 1.0)


def test_the_interval_covers_the_true_share_about_19_times_in_20() -> None:
    n = 200
    for share in (0.05, 0.2, 0.5, 0.9):
        hits = 0.0
        for k in range(n + 1):
            low, high = statistics.wilson_interval(k, n)
            chance = math.comb(n, k) * share**k * (1 - share) ** (n - k)
            hits += chance * (low <= share <= high)
        assert 0.93 < hits < 0.975


@pytest.mark.parametrize("gained", range(7))
@pytest.mark.parametrize("lost", range(7))
def test_the_paired_test_counts_every_way_it_could_have_gone(gained: int, lost: int) -> None:
    changed = gained + lost
    extreme = max(gained, lost)
    ways = [sum(way) for way in itertools.product((0, 1), repeat=changed)]
    as_extreme = sum(1 for ups in ways if max(ups, changed - ups) >= extreme)
    assert statistics.paired_p(gained, lost) == pytest.approx(as_extreme / len(ways))


@pytest.mark.parametrize(
    ("attempts", "solved", "k"), [(4, 1, 2), (5, 0, 3), (5, 5, 1), (8, 3, 8), (6, 2, 1)]
)
def test_pass_at_k_is_the_share_of_draws_with_a_success(attempts: int, solved: int, k: int) -> None:
    tries = [True] * solved + [False] * (attempts - solved)
    draws = list(itertools.combinations(tries, k))
    assert statistics.pass_at(k, [solved], attempts) == pytest.approx(
        sum(map(any, draws)) / len(draws)
    )


def test_pass_at_more_than_was_tried_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@5 needs at least 5 attempts, not 4"):
        statistics.pass_at(5, [1], 4)
