"""What does a service print when it is healthy? Its wordings and how often each, so that news can be told from habit.

A baseline is learned from a healthy stretch of the service's own log, and is kept as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from midwatch.copilot.reading import Digest
from midwatch.copilot.shapes import Shape
from midwatch.errors import MidwatchError

MAX_WORDINGS = 20_000
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """How many lines of each wording a healthy service prints, per minute and per 1,000 of its lines.

    `minutes` is how long the healthy stretch was (0: not known), `lines` how many lines it had.
    """

    counts: dict[str, int]
    lines: int
    minutes: float = 0.0

    @classmethod
    def learn(cls, digest: Digest, minutes: float = 0.0) -> Baseline:
        """The baseline of a healthy log that was read; `minutes` is the time that it covers, if known."""
        counts: dict[str, int] = {}
        for one in sorted(digest.seen.values(), key=lambda one: -one.count)[:MAX_WORDINGS]:
            name = wording_name(one.shape)
            counts[name] = counts.get(name, 0) + one.count
        return cls(counts=counts, lines=digest.total, minutes=minutes)

    def per_minute(self, shape: Shape) -> float | None:
        """How often a minute a healthy service prints a shape's wording; None if it never does or no time is known."""
        count = self.counts.get(wording_name(shape))
        return count / self.minutes if count and self.minutes > 0 else None

    def times_as_often(self, shape: Shape, count: int, lines: int, minutes: float = 0.0) -> float | None:
        """How many times as often as usual a wording was printed, `count` times in `lines`; None: it never was.

        By the minute if the log's and the baseline's lengths in time are known, else by the line.
        """
        usual = self.counts.get(wording_name(shape))
        if not usual:
            return None
        if minutes > 0 and self.minutes > 0:
            return (count / minutes) / (usual / self.minutes)
        return (count / max(lines, 1)) / (usual / max(self.lines, 1))

    def dump(self) -> bytes:
        """The baseline as JSON."""
        value = {"format": _FORMAT, "lines": self.lines, "minutes": self.minutes, "counts": self.counts}
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def load(cls, data: bytes) -> Baseline:
        """A baseline from its JSON. Raises `MidwatchError` for anything else."""
        try:
            value = orjson.loads(data)
            if value["format"] != _FORMAT:
                raise ValueError(f"format {value['format']}")
            counts = {str(name): int(count) for name, count in value["counts"].items()}
            return cls(counts=counts, lines=int(value["lines"]), minutes=float(value["minutes"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise MidwatchError(
                f"This is no baseline of a healthy service ({error}).", "Learn it again from a healthy log."
            ) from error


def wording_name(shape: Shape) -> str:
    """What a wording is called in a baseline: its program, its level and its words."""
    return f"{shape.program}|{shape.level}|{' '.join(shape.wording.words)}"


def merge(baselines: Iterable[Baseline]) -> Baseline:
    """One baseline of several healthy stretches."""
    counts: dict[str, int] = {}
    lines, minutes = 0, 0.0
    for one in baselines:
        lines, minutes = lines + one.lines, minutes + one.minutes
        for name, count in one.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Baseline(counts=counts, lines=lines, minutes=minutes)
