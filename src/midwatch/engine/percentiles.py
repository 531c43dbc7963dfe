"""What times were like, in four numbers. It imports nothing heavy: clients of a server use it too."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of samples: the least, the middle, and what 95 and 99 of a hundred do not exceed."""

    least: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Percentiles:
        """By linear interpolation; all 0 without samples."""
        if len(samples) < 2:
            only = samples[0] if samples else 0.0
            return cls(least=only, p50=only, p95=only, p99=only)
        cuts = statistics.quantiles(samples, n=100, method="inclusive")
        return cls(least=min(samples), p50=cuts[49], p95=cuts[94], p99=cuts[98])
