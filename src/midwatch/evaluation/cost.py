"""What does honesty cost? The share that goes up and the bill, for every risk that one may choose.

For each α a threshold is chosen on one half of the incidents and applied to the other, both ways round and for several
halves; what falls below it is priced as a call to a bigger host. The tokens are those of the question that would be
sent (evidence already reduced) and of an answer; the price is a dated list price (`REFERENCE`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from midwatch.evaluation.promise import DELTA, Fit, half, threshold
from midwatch.evaluation.verdict import Verdict

ALPHAS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
ANSWER_TOKENS = 150
"""Length of a bigger model's answer where none was measured (its schema: ids, a category, one sentence, steps)."""
HALVES = 10


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars for a million tokens, in and out, of whom, and when it was read."""

    name: str
    usd_per_mtok_in: float
    usd_per_mtok_out: float
    date: str

    def of(self, tokens_in: float, tokens_out: float) -> float:
        """What a call costs, US dollars."""
        return (tokens_in * self.usd_per_mtok_in + tokens_out * self.usd_per_mtok_out) / 1e6


REFERENCE = Price(
    name="list price of Claude Sonnet 5.5 and of GPT-6.1 Sol",
    usd_per_mtok_in=2.0,
    usd_per_mtok_out=10.0,
    date="2026-11-24",
)
"""Two general models of the middle class had this price at docs.venice.ai on that day; a bigger or a smaller one moves
the curve up or down, not its shape."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One α. `accuracy` is of all incidents after the bigger host answered its part; None where it was not asked."""

    alpha: float
    escalated: float
    usd_per_1000: float
    wrong: float
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points by rising α, and what asking the bigger host always would cost for 1,000 incidents."""

    points: tuple[Point, ...]
    always_usd_per_1000: float
    price: Price
    sent_tokens: float

    def at(self, alpha: float) -> Point:
        """The point of an α of the curve."""
        return next(point for point in self.points if point.alpha == alpha)


def curve(
    verdicts: Sequence[Verdict],
    *,
    price: Price = REFERENCE,
    bigger: Sequence[Verdict] = (),
    fit: Fit = threshold,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
) -> Curve | None:
    """The bill of a local column for each α; None where too few incidents are labelled.

    `bigger` are verdicts of a column that asked the bigger host about every incident; with them the accuracy of the
    mix is known, and the tokens are measured.
    """
    judged = [item for item in verdicts if item.labelled]
    if len(judged) < 4:
        return None
    said = np.array([item.confidence for item in judged])
    right = np.array([item.right for item in judged])
    local = np.array([item.cost_usd for item in judged])
    asked = {item.incident: item for item in bigger}
    bill = np.array([_bill(item, asked, price) for item in judged])
    whole = all(item.incident in asked for item in judged)
    better = np.array([asked[item.incident].right for item in judged]) if whole else right
    random = np.random.default_rng(seed)
    halves = [chosen for _ in range(HALVES) for first in [half(random, len(judged))] for chosen in (first, ~first)]
    points = []
    for alpha in alphas:
        rows = []
        for chosen in halves:
            least = fit(said[chosen].tolist(), right[chosen].tolist(), alpha, DELTA)
            up = said[~chosen] < least
            spent = local[~chosen] + np.where(up, bill[~chosen], 0.0)
            mixed = np.where(up, better[~chosen], right[~chosen])
            rows.append((up.mean(), 1000 * spent.mean(), (~up & ~right[~chosen]).mean(), mixed.mean()))
        escalated, usd, wrong, accuracy = (float(value) for value in np.mean(rows, axis=0))
        points.append(
            Point(
                alpha=alpha,
                escalated=escalated,
                usd_per_1000=usd,
                wrong=wrong,
                accuracy=accuracy if whole else None,
            )
        )
    return Curve(
        points=tuple(points),
        always_usd_per_1000=1000 * float(bill.mean()),
        price=price,
        sent_tokens=float(np.mean([item.sent_tokens for item in judged])),
    )


def _bill(verdict: Verdict, asked: Mapping[str, Verdict], price: Price) -> float:
    """What a call about this incident costs: as billed where it was made at a price, else by its tokens."""
    made = asked.get(verdict.incident)
    if made is not None and made.escalated and made.cost_usd > 0:
        return made.cost_usd
    return price.of(verdict.sent_tokens, ANSWER_TOKENS)
