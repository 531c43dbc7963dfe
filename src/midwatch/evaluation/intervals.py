"""How sure is a figure? Bootstraps by incident, and the exact bound of a share (Clopper and Pearson).

Shares and means come from `tuning.bootstrap.ratio`; what is not a ratio of sums (an area, a quantile, an error over
bins) is drawn anew here. `fault` as a cluster draws whole faults, since two incidents of one fault share its lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from midwatch.tuning.bootstrap import LEVEL, Interval, ratio

RESAMPLES = 1000
Floats = NDArray[np.float64]

__all__ = ["LEVEL", "RESAMPLES", "Floats", "Interval", "clopper_pearson", "ratio", "redrawn"]


def redrawn(
    statistic: Callable[..., float | None],
    *columns: Sequence[float],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """A statistic of rows with its percentile interval; None where it is not defined.

    `columns` are equally long, one entry a row; whole rows are drawn. A redraw on which the statistic is not defined
    (one class alone has no AUROC) is left out.
    """
    table = [np.asarray(column, dtype=np.float64) for column in columns]
    value = statistic(*table)
    rows = len(table[0])
    if value is None or rows == 0:
        return None
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = random.integers(0, rows, rows)
        again = statistic(*(column[chosen] for column in table))
        if again is not None:
            drawn.append(again)
    tail = (1 - LEVEL) / 2
    low, high = (float(end) for end in np.quantile(drawn, (tail, 1 - tail))) if drawn else (value, value)
    return Interval(value=value, low=min(low, value), high=max(high, value))


def clopper_pearson(hits: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson, Biometrika 26, 1934).

    The ends are quantiles of beta distributions: `low` of Beta(hits, misses + 1), `high` of Beta(hits + 1, misses).
    """
    assert 0 <= hits <= trials
    tail = (1 - level) / 2
    low = beta_quantile(tail, hits, trials - hits + 1) if hits else 0.0
    high = beta_quantile(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return low, high


def beta_quantile(probability: float, a: int, b: int) -> float:
    """The point below which Beta(a, b) has the given probability, for whole a and b of at least 1, by bisection.

    P(Beta(a, b) <= x) is the chance of at least `a` hits in `a + b - 1` trials of chance x (Abramowitz and Stegun
    26.5.24), a sum of positive terms that loses no digits.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _at_least(a, a + b - 1, middle) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _at_least(hits: int, trials: int, chance: float) -> float:
    """P(X >= hits) for a binomial X; the smaller side is summed."""
    if chance <= 0.0 or chance >= 1.0:
        return float(chance >= 1.0 or hits <= 0)
    wanted = np.arange(hits, trials + 1) if hits > trials * chance else np.arange(hits)
    logs = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in wanted])
    total = float(np.exp(logs + wanted * math.log(chance) + (trials - wanted) * math.log1p(-chance)).sum())
    return total if hits > trials * chance else 1.0 - total
