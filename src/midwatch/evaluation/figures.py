"""The pictures of an evaluation: reliability, risk against coverage, the bill for a risk, who is taken for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from midwatch.copilot.taxonomy import UNKNOWN
from midwatch.evaluation.chart import SERIES, Axis, Chart, Grid, axis_to
from midwatch.evaluation.cost import Curve
from midwatch.evaluation.intervals import clopper_pearson
from midwatch.evaluation.measures import BINS, risk_coverage, scores
from midwatch.evaluation.verdict import Verdict

Columns = Mapping[str, Sequence[Verdict]]


def reliability(columns: Columns) -> str:
    """Stated confidence against the share that is right, in the bins of the calibration error, with exact intervals.

    On the diagonal a column is as often right as it says; below it claims too much.
    """
    chart = Chart(
        title="Stated confidence against the share of right answers.",
        x=Axis(name="confidence"),
        y=Axis(name="share right"),
        names=tuple(columns),
    )
    chart.line([(0, 0), (1, 1)], "guide")
    for index, verdicts in enumerate(columns.values()):
        kind = f"s{index % SERIES}"
        confidence, right = (np.asarray(values) for values in scores(verdicts))
        order = np.argsort(confidence, kind="stable")
        for part in np.array_split(order, BINS):
            if len(part):
                hits = int(right[part].sum())
                low, high = clopper_pearson(hits, len(part))
                chart.mark(float(confidence[part].mean()), hits / len(part), kind, low=low, high=high)
    return chart.svg()


def risk_against_coverage(columns: Columns) -> str:
    """Share of wrong answers among the surest, for every share of incidents that is answered without asking further."""
    curves = {}
    for name, verdicts in columns.items():
        labelled = sum(item.labelled for item in verdicts)
        confidence, right = (np.asarray(values) for values in scores(verdicts))
        coverage, risk = risk_coverage(confidence, right)
        curves[name] = [
            (float(at) * len(right) / max(1, labelled), float(value)) for at, value in zip(coverage, risk, strict=True)
        ]
    most = max((risk for points in curves.values() for _, risk in points), default=0.0)
    chart = Chart(
        title="Share of wrong answers among the surest, by the share of incidents that is answered.",
        x=Axis(name="share of incidents answered"),
        y=axis_to(max(most, 0.05), "share wrong of the answered"),
        names=tuple(columns),
    )
    for index, points in enumerate(curves.values()):
        chart.line(points, f"s{index % SERIES}")
    return chart.svg()


def bill(curve: Curve, alpha: float) -> str:
    """Dollars for 1,000 incidents by the accepted risk, beside what asking the bigger host always costs."""
    most = max(curve.always_usd_per_1000, *(point.usd_per_1000 for point in curve.points))
    chart = Chart(
        title="Dollars for 1,000 incidents by the risk alpha that is accepted.",
        x=Axis(name="α: accepted and wrong, at most", most=0.4, ticks=(0.0, 0.1, 0.2, 0.3, 0.4)),
        y=axis_to(most, "US dollars for 1,000 incidents"),
    )
    always = curve.always_usd_per_1000
    chart.line([(0.0, always), (0.4, always)], "guide")
    chart.note(0.4, always, "always the bigger host", anchor="end")
    _by_alpha(chart, [(point.alpha, point.usd_per_1000) for point in curve.points], alpha)
    return chart.svg()


def share_escalated(curve: Curve, alpha: float) -> str:
    """Share of incidents that goes up by the accepted risk, and the share that is accepted and wrong."""
    chart = Chart(
        title="Share of incidents that goes up by the risk alpha that is accepted.",
        x=Axis(name="α: accepted and wrong, at most", most=0.4, ticks=(0.0, 0.1, 0.2, 0.3, 0.4)),
        y=Axis(name="share of incidents"),
        names=("goes up", "accepted and wrong"),
    )
    _by_alpha(chart, [(point.alpha, point.escalated) for point in curve.points], alpha)
    chart.line([(point.alpha, point.wrong) for point in curve.points], "s1")
    chart.line([(0.0, 0.0), (0.4, 0.4)], "guide")
    return chart.svg()


def _by_alpha(chart: Chart, points: Sequence[tuple[float, float]], alpha: float) -> None:
    chart.line(points, "s0")
    for at, value in points:
        if at == alpha:
            chart.mark(at, value, "s0")
            chart.note(at, value, f"α = {alpha:g}", dy=-8)


def confusion(verdicts: Sequence[Verdict]) -> str:
    """True categories by said ones. An accepted other name counts as the true one; the last column abstains."""
    judged = [item for item in verdicts if item.labelled]
    counts = Counter((item.truth.category, item.truth.category if item.right else item.category) for item in judged)
    rows = tuple(sorted({true for true, _ in counts}, key=lambda name: (name == UNKNOWN, name)))
    named = {name for _, name in counts} - {UNKNOWN}
    causes = tuple(name for name in rows if name != UNKNOWN)
    columns = (*causes, *sorted(named - set(causes)), UNKNOWN)
    return Grid(
        title="True categories (rows) by what was said (columns).",
        rows=rows,
        columns=columns,
        counts=tuple(tuple(counts[true, name] for name in columns) for true in rows),
    ).svg()
