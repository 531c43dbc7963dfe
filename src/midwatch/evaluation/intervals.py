"""How sure is a figure? Bootstraps by incident, and the exact bound of a share (Clopper and Pearson).

Shares and means of shares come from `tuning.bootstrap.ratio`; what is not a ratio of sums (an area, a quantile, an
error over bins) is drawn anew here. Two incidents of one fault have lines in common, so that drawing incidents says too
little about faults that nobody has seen; `redrawn` can draw whole groups instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from midwatch.copilot.promise import lower_bound, upper_bound
from midwatch.tuning.bootstrap import LEVEL, Interval, ratio

RESAMPLES = 1000
Floats = NDArray[np.float64]

__all__ = ["LEVEL", "RESAMPLES", "Floats", "Interval", "clopper_pearson", "ratio", "redrawn"]


def redrawn(
    statistic: Callable[..., float | None],
    *columns: Sequence[float],
    groups: Sequence[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """A statistic (not negative) of rows with its percentile interval; None where it is not defined.

    `columns` are equally long, one entry a row; rows are drawn, or with `groups` (a name for each row) whole groups. A
    redraw on which the statistic is not defined (one class alone has no AUROC) is left out. The interval is moved by
    the bias that the redraws show (Efron and Tibshirani 1993, chapter 10): a calibration error of a redraw is greater
    than that of its rows, because rows that are drawn twice agree with themselves.
    """
    table = [np.asarray(column, dtype=np.float64) for column in columns]
    rows = len(table[0])
    value = statistic(*table) if rows else None
    if value is None:
        return None
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(np.asarray(groups) == name) for name in dict.fromkeys(groups)]
    drawn = []
    for _ in range(resamples):
        if members:
            chosen = np.concatenate([members[at] for at in random.integers(0, len(members), len(members))])
        else:
            chosen = random.integers(0, rows, rows)
        again = statistic(*(column[chosen] for column in table))
        if again is not None:
            drawn.append(again)
    if not drawn:
        return Interval(value=value, low=value, high=value)
    tail, bias = (1 - LEVEL) / 2, float(np.mean(drawn)) - value
    low, high = (float(end) - bias for end in np.quantile(drawn, (tail, 1 - tail)))
    return Interval(value=value, low=max(0.0, min(low, value)), high=max(high, value))


def clopper_pearson(hits: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    assert 0 <= hits <= trials
    tail = (1 - level) / 2
    return lower_bound(hits, trials, tail), upper_bound(hits, trials, tail)
