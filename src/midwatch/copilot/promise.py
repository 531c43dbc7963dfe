"""How often may an accepted answer be wrong? A threshold that keeps a promise, and an alarm when it no longer holds.

The promise: of all incidents, at most a share α is accepted and wrong. The threshold is the least at which the upper
Clopper-Pearson bound (Biometrika 1934) of that share, on labelled incidents, is at most α. Thresholds are tried from
the highest down and the first failure ends it (fixed-sequence testing, Maurer et al. 1995), so that trying many costs
no certainty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, lgamma, log, log1p

NEVER = 1.01
"""A threshold that no confidence reaches: nothing is accepted."""
LEAST_ALARMED = 20
"""Judged incidents below which no drift is claimed."""


def fit_threshold(confidences: Sequence[float], right: Sequence[bool], alpha: float, delta: float = 0.05) -> float:
    """The least threshold with P(accepted and wrong) ≤ alpha at confidence 1 - delta; `NEVER` if none keeps it."""
    allowed = most_wrong(len(confidences), alpha, delta)
    found, wrong = NEVER, 0
    pairs = sorted(zip(confidences, right, strict=True), key=lambda pair: -pair[0])
    if allowed < 0:
        return NEVER
    for index, (confidence, good) in enumerate(pairs):
        wrong += not good
        if wrong > allowed:
            break
        if index + 1 == len(pairs):
            return 0.0
        if pairs[index + 1][0] < confidence:
            found = confidence
    return found


def most_wrong(trials: int, alpha: float, delta: float = 0.05) -> int:
    """The most wrong ones of so many trials at which the upper bound is at most alpha; -1 if none may be."""
    allowed = -1
    while allowed + 1 < trials and binomial_cdf(allowed + 1, trials, alpha) <= delta:
        allowed += 1
    return allowed


def upper_bound(events: int, trials: int, delta: float = 0.05) -> float:
    """The Clopper-Pearson upper bound of a share at confidence 1 - delta; 1 where nothing was tried."""
    if trials == 0 or events >= trials:
        return 1.0
    return _solve(lambda share: binomial_cdf(events, trials, share) > delta)


def lower_bound(events: int, trials: int, delta: float = 0.05) -> float:
    """The Clopper-Pearson lower bound of a share at confidence 1 - delta; 0 where nothing happened."""
    if trials == 0 or events == 0:
        return 0.0
    return _solve(lambda share: 1 - binomial_cdf(events - 1, trials, share) < delta)


def binomial_cdf(events: int, trials: int, share: float) -> float:
    """P(at most `events` of `trials`), each with probability `share`."""
    if share <= 0.0:
        return 1.0
    if share >= 1.0:
        return float(events >= trials)
    whole = lgamma(trials + 1)
    return min(
        1.0,
        sum(
            exp(whole - lgamma(k + 1) - lgamma(trials - k + 1) + k * log(share) + (trials - k) * log1p(-share))
            for k in range(events + 1)
        ),
    )


def drifted(accepted_wrong: int, judged: int, alpha: float, delta: float = 0.05) -> bool:
    """Whether judged incidents show that the promise no longer holds: even the lower bound lies above alpha."""
    return judged >= LEAST_ALARMED and lower_bound(accepted_wrong, judged, delta) > alpha


def _solve(below: Callable[[float], bool]) -> float:
    """The share at which a monotone condition turns false, to 1e-9."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high
