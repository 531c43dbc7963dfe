"""Does the promise hold? A threshold from one half of the incidents, the share of accepted wrong answers on the other.

The promise is P(accepted and wrong) ≤ α with certainty 1 - δ. Over many random halves a kept promise means two things:
the mean share on the halves that chose nothing is below α, and few halves are above it. Somewhat more than δ may be,
since such a half is a sample too and has more than its share of wrong answers by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midwatch.copilot.confidence import LEAST_ACCEPTED
from midwatch.copilot.promise import fit_threshold

Fit = Callable[[Sequence[float], Sequence[bool], float, float], float]
"""Confidences, whether each was right, α and δ in; the least accepted confidence out."""
ALPHA, DELTA = 0.1, 0.05
SPLITS = 200


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What random halves say. `kept` counts those whose share of accepted wrong answers is at most α."""

    alpha: float
    splits: int
    kept: int
    mean_wrong: float
    worst_wrong: float
    mean_accepted: float

    @property
    def share_kept(self) -> float:
        """Share of the splits that kept the promise."""
        return self.kept / self.splits


def threshold(confidences: Sequence[float], right: Sequence[bool], alpha: float, delta: float = DELTA) -> float:
    """The threshold that is shipped: the bound's, and never below one half."""
    return max(LEAST_ACCEPTED, fit_threshold(confidences, right, alpha, delta))


def over_splits(
    confidences: Sequence[float],
    right: Sequence[bool],
    *,
    alpha: float = ALPHA,
    delta: float = DELTA,
    fit: Fit = threshold,
    groups: Sequence[str] = (),
    splits: int = SPLITS,
    seed: int = 0,
) -> Kept | None:
    """Choose a threshold on a random half, look at the other half, so many times; None for fewer than two incidents.

    With `groups` (a name for each incident) whole groups fall into one half, so that the threshold never saw a fault
    that it is judged on.
    """
    if len(right) < 2:
        return None
    said, good = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=bool)
    random = np.random.default_rng(seed)
    wrong, accepted = [], []
    for _ in range(splits):
        first = half(random, len(good), groups)
        least = fit(said[first].tolist(), good[first].tolist(), alpha, delta)
        taken = said[~first] >= least
        wrong.append(float((taken & ~good[~first]).mean()))
        accepted.append(float(taken.mean()))
    return Kept(
        alpha=alpha,
        splits=splits,
        kept=sum(share <= alpha for share in wrong),
        mean_wrong=float(np.mean(wrong)),
        worst_wrong=max(wrong),
        mean_accepted=float(np.mean(accepted)),
    )


def half(random: np.random.Generator, size: int, groups: Sequence[str] = ()) -> NDArray[np.bool_]:
    """Which of `size` incidents are in the first half: half of them, or groups until at least half are."""
    chosen = np.zeros(size, dtype=bool)
    if not groups:
        chosen[random.permutation(size)[: size // 2]] = True
        return chosen
    names = np.asarray(groups)
    for name in random.permutation(np.unique(names))[:-1]:
        if chosen.sum() >= size // 2:
            break
        chosen |= names == name
    if not chosen.any():  # one group alone cannot be kept together
        return half(random, size)
    return chosen
