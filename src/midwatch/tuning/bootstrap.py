"""How sure is a figure? A bootstrap over prompts and seeds.

Every figure of an evaluation is one form: the sum of some scores over the sum of others, each a table of seeds and
prompts. A rate has ones below; a retention has the base's scores below; a change per token has tokens below.

Both sides of the table are drawn anew, each by itself: every seed answers the same prompts, so a hard prompt is hard
for all of them, and drawing prompts within each seed alone would call that agreement evidence (Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1, 2007, 386-411: no bootstrap of such a table is exact, this one is a little
too wide). One draw less than there are is taken, which makes the variance of a mean unbiased (Rao and Wu, "Resampling
inference with complex survey data", JASA 83, 1988): among three seeds that matters.
Legend: S seeds, P prompts, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """The same in another unit."""
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)


def ratio(
    above_SP: ArrayLike, below_SP: ArrayLike = 1.0, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """The sum of `above_SP` over the sum of `below_SP`, with its interval; None if there is nothing below.

    `below_SP` is stretched to the shape of `above_SP`, so that a base that answers once is compared with every seed.
    A share of which none holds, or all do, does not vary from resample to resample; the far end of its interval is the
    exact bound for that many prompts instead (Clopper and Pearson, Biometrika 26, 1934).
    """
    above = np.atleast_2d(np.asarray(above_SP, dtype=np.float64))
    below = np.broadcast_to(np.atleast_2d(np.asarray(below_SP, dtype=np.float64)), above.shape)
    if above.size == 0 or not below.sum() > 0:
        return None
    value = float(above.sum() / below.sum())
    seeds, prompts = above.shape
    random = np.random.default_rng(seed)
    seeds_RS, prompts_RP = _counts(random, resamples, seeds), _counts(random, resamples, prompts)
    sums = _weighted(above, seeds_RS, prompts_RP), _weighted(below, seeds_RS, prompts_RP)
    kept = sums[1] > 0
    tail = (1 - LEVEL) / 2
    low, high = (float(end) for end in np.quantile(sums[0][kept] / sums[1][kept], (tail, 1 - tail)))
    if bool(np.isin(below, (0, 1)).all()) and (not above.any() or bool((above == below).all())):
        reach = 1 - tail ** (1 / np.count_nonzero(below.any(axis=0)))
        low, high = (0.0, reach) if value == 0 else (1 - reach, 1.0)
    return Interval(value=value, low=min(low, value), high=max(high, value))


def _counts(random: np.random.Generator, resamples: int, size: int) -> NDArray[np.float64]:
    """How often each of `size` things is drawn in each resample of `size` - 1 draws, [R, size]."""
    return random.multinomial(max(1, size - 1), np.full(size, 1 / size), resamples).astype(np.float64)


def _weighted(
    scores_SP: NDArray[np.float64], seeds_RS: NDArray[np.float64], prompts_RP: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The sum of every resample, [R]."""
    sums: NDArray[np.float64] = ((seeds_RS @ scores_SP) * prompts_RP).sum(axis=1)
    return sums
