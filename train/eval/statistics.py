"""How sure a figure is: intervals for shares, a paired test for before and after, pass@k.

Small n is the rule here (200 problems), so nothing leans on the normal approximation where an exact or a
score method costs no more. Pure arithmetic: no torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a share (Wilson 1927); (0, 1) when nothing was counted.

    >>> [round(edge, 4) for edge in wilson_interval(140, 200)]
    [0.6332, 0.7593]
    >>> [round(edge, 4) for edge in wilson_interval(0, 200)]
    [0.0, 0.0188]
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return low, 1.0 if successes == n else min(1.0, middle + half)


def paired_p(gained: int, lost: int) -> float:
    """Return the exact two-sided p of McNemar's test: could so many changes go one way by chance?

    Only the problems on which two models differ count: `gained` went from wrong to right, `lost` the
    other way; by chance each is as likely.

    >>> round(paired_p(10, 1), 4), paired_p(3, 3), paired_p(0, 0)
    (0.0117, 1.0, 1.0)
    """
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**changed)) if changed else 1.0


def paired_difference(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the 95% interval of the difference of two paired shares (Agresti and Min 2005).

    >>> [round(edge, 3) for edge in paired_difference(60, 10, 200)]
    [0.173, 0.322]
    """
    if n == 0:
        return -1.0, 1.0
    up, down, total = gained + 0.5, lost + 0.5, n + 2
    middle = (up - down) / total
    half = Z95 * math.sqrt(up + down - (up - down) ** 2 / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)


def pass_at(k: int, solved: Sequence[int], attempts: int) -> float:
    """Return the chance that one of `k` attempts solves a problem, without bias (Chen et al. 2021).

    `solved` holds, problem by problem, how many of `attempts` attempts were right.

    >>> pass_at(1, [1, 0], 4), pass_at(4, [1, 0], 4), pass_at(2, [2], 4)
    (0.125, 0.5, 0.8333333333333334)
    """
    if not 1 <= k <= attempts:
        raise ValueError(f"pass@{k} needs at least {k} attempts, not {attempts}")
    if not solved:
        return 0.0
    missed = [math.comb(attempts - right, k) / math.comb(attempts, k) for right in solved]
    return 1 - sum(missed) / len(missed)
