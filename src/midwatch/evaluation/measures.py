"""The numbers of a column on a set: is it right, are the lines right, does it know when it is not?

`unknown` abstains: it is right where the lines show no cause, and nowhere else, but it misleads nobody. So accuracy
counts it, and what judges confidence (calibration error, Brier, AUROC, risk against coverage) looks at named causes
only. Incidents whose cause is not labelled count for lines and entities alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from midwatch.copilot.taxonomy import UNKNOWN
from midwatch.evaluation.intervals import Floats, Interval, clopper_pearson, ratio, redrawn
from midwatch.evaluation.verdict import Verdict

FALSE_ALARM = "benign_false_alarm"
SURE = 0.8
"""From this confidence on a wrong answer is confidently wrong."""
BINS = 15


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number. `cases` says how many incidents it is about; `interval` is None where it is not defined."""

    key: str
    name: str
    unit: str
    interval: Interval | None
    cases: int
    note: str = ""


def measure(verdicts: Sequence[Verdict], *, seed: int = 0) -> dict[str, Measure]:
    """Every number of one column on one set, by key, in the order in which they are shown."""
    found = [*answers(verdicts, seed=seed).values(), *_confidence(verdicts, seed), *_spent(verdicts, seed)]
    return {item.key: item for item in found}


def answers(verdicts: Sequence[Verdict], *, seed: int = 0) -> dict[str, Measure]:
    """The numbers that judge answers and lines, without those of confidence, time and money."""
    found = [*_category(verdicts, seed), *_false_alarms(verdicts, seed), *_lines(verdicts, seed)]
    return {item.key: item for item in found}


def _category(verdicts: Sequence[Verdict], seed: int) -> list[Measure]:
    labelled = [item for item in verdicts if item.labelled]
    answered = [item for item in labelled if item.answered]
    accepted = [item for item in answered if item.accepted]
    named = [item for item in verdicts if item.truth.entities]

    def share(key: str, name: str, of: Sequence[Verdict], says: Callable[[Verdict], bool], note: str = "") -> Measure:
        return _mean(key, name, [float(says(item)) for item in of], seed, note)

    return [
        share("accuracy", "category right", labelled, lambda item: item.right),
        share(
            "accuracy_accepted",
            "category right, of what is accepted",
            accepted,
            lambda item: item.right,
            "shown without asking further, at the default risk",
        ),
        share("accepted", "accepted", labelled, lambda item: item.accepted and item.answered),
        share("accuracy_answered", "category right, of named causes", answered, lambda item: item.right),
        share("abstained", "abstained (unknown)", labelled, lambda item: not item.answered),
        share(
            "abstained_right",
            "abstained where the lines show no cause",
            [item for item in labelled if item.truth.category == UNKNOWN],
            lambda item: not item.answered,
        ),
        share("top3", "category among the first three", labelled, lambda item: _within(item, 3)),
        share("entity", "entity right", named, lambda item: item.entity_right),
    ]


def _within(verdict: Verdict, places: int) -> bool:
    """Whether one of the first named categories is right; where the lines show no cause, whether it abstained."""
    if verdict.truth.category == UNKNOWN:
        return verdict.right
    return any(verdict.truth.right(category) for category in verdict.ranking[:places])


def _false_alarms(verdicts: Sequence[Verdict], seed: int) -> list[Measure]:
    labelled = [item for item in verdicts if item.labelled]
    said = [item for item in labelled if item.category == FALSE_ALARM]
    true = [item for item in labelled if item.truth.category == FALSE_ALARM]
    return [
        _mean(
            "false_alarm_precision",
            "false alarms: precision",
            [float(item.right) for item in said],
            seed,
            "of what was called a false alarm",
        ),
        _mean(
            "false_alarm_recall",
            "false alarms: recall",
            [float(item.right) for item in true],
            seed,
            "of what was a false alarm",
        ),
    ]


def _lines(verdicts: Sequence[Verdict], seed: int) -> list[Measure]:
    marked = [item for item in verdicts if item.truth_total]
    citing = [item for item in marked if item.cited]
    return [
        _mean(
            "cited_precision",
            "cited lines: precision",
            [precision_of(item) for item in citing],
            seed,
            "mean over incidents that cite",
        ),
        _mean("cited_recall", "cited lines: recall", [recall_of(item) for item in marked], seed),
        _mean("cited_f1", "cited lines: F1", [f1_of(item) for item in marked], seed, "mean over incidents"),
        _mean(
            "shown_recall",
            "evidence: true lines shown",
            [item.truth_shown / item.truth_total for item in marked],
            seed,
            "mean over incidents",
        ),
        _mean(
            "shown_any",
            "evidence: a true line shown",
            [float(item.truth_shown > 0) for item in marked],
            seed,
        ),
    ]


def precision_of(verdict: Verdict) -> float:
    """Share of the cited lines that are true; 0 where none is cited."""
    return verdict.cited_right / len(verdict.cited) if verdict.cited else 0.0


def recall_of(verdict: Verdict) -> float:
    """Share of the true lines, by wording, that are cited."""
    return verdict.truth_cited / verdict.truth_total


def f1_of(verdict: Verdict) -> float:
    """Harmonic mean of precision and recall of one incident's cited lines."""
    precision, recall = precision_of(verdict), recall_of(verdict)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _confidence(verdicts: Sequence[Verdict], seed: int) -> list[Measure]:
    labelled = [item for item in verdicts if item.labelled]
    confidence, right = scores(verdicts)
    wrong_sure = [float(item.answered and not item.right and item.confidence >= SURE) for item in labelled]
    wrong = sum(item.accepted_wrong for item in labelled)
    risk = None
    if labelled:
        low, high = clopper_pearson(wrong, len(labelled))
        risk = Interval(value=wrong / len(labelled), low=low, high=high)
    of_named = "of named causes"
    return [
        Measure(
            key="accepted_wrong",
            name="accepted and wrong",
            unit="share",
            interval=risk,
            cases=len(labelled),
            note="exact interval (Clopper and Pearson)",
        ),
        _mean("sure_wrong", f"confidently wrong (≥ {SURE:g})", wrong_sure, seed, "of all incidents"),
        Measure(
            key="sure_wrong_count",
            name=f"confidently wrong (≥ {SURE:g}), incidents",
            unit="incidents",
            interval=_exactly(sum(wrong_sure)) if labelled else None,
            cases=len(labelled),
        ),
        Measure(
            key="ece",
            name="calibration error (ECE)",
            unit="share",
            interval=redrawn(ece, confidence, right, seed=seed),
            cases=len(right),
            note=f"{BINS} bins of equal mass, {of_named}",
        ),
        Measure(
            key="ece_floor",
            name="calibration error by chance alone",
            unit="share",
            interval=_exactly(ece_floor(confidence, seed=seed)) if right else None,
            cases=len(right),
            note="what a perfectly calibrated column of these confidences would show",
        ),
        Measure(
            key="brier",
            name="Brier score",
            unit="score",
            interval=redrawn(brier, confidence, right, seed=seed),
            cases=len(right),
            note=of_named,
        ),
        Measure(
            key="auroc",
            name="AUROC of the confidence",
            unit="share",
            interval=redrawn(auroc, confidence, right, seed=seed),
            cases=len(right),
            note=of_named,
        ),
        Measure(
            key="aurc",
            name="area under risk-coverage",
            unit="share",
            interval=redrawn(aurc, confidence, right, seed=seed),
            cases=len(right),
            note=of_named,
        ),
    ]


def _spent(verdicts: Sequence[Verdict], seed: int) -> list[Measure]:
    seconds = [item.seconds for item in verdicts]
    found = [
        Measure(
            key=f"seconds_p{percent}",
            name=f"time per incident, p{percent}",
            unit="s",
            interval=redrawn(_quantile(percent / 100), seconds, seed=seed) if seconds else None,
            cases=len(seconds),
        )
        for percent in (50, 95)
    ]
    up = [float(item.escalated) for item in verdicts] if any(item.escalated for item in verdicts) else []
    spent = [item.cost_usd for item in verdicts]
    cost = Measure(
        key="usd",
        name="cost per incident",
        unit="USD",
        interval=redrawn(lambda values: float(values.mean()), spent, seed=seed) if spent else None,
        cases=len(spent),
    )
    return [_mean("escalated", "answered by the bigger host", up, seed), *found, cost]


def scores(verdicts: Sequence[Verdict]) -> tuple[list[float], list[float]]:
    """Confidence and right (1 or 0) of each labelled incident for which a cause was named."""
    judged = [item for item in verdicts if item.labelled and item.answered]
    return [item.confidence for item in judged], [float(item.right) for item in judged]


def share_right(verdicts: Sequence[Verdict]) -> Interval:
    """The share of labelled incidents that are right, with its exact interval."""
    judged = [item.right for item in verdicts if item.labelled]
    low, high = clopper_pearson(sum(judged), len(judged))
    return Interval(value=sum(judged) / len(judged), low=low, high=high)


def ece(confidence: Floats, right: Floats) -> float | None:
    """Expected calibration error over 15 bins of equal mass; None without an answer.

    Mean over the bins, weighted by their size, of |mean right - mean confidence| (Naeini et al., AAAI 2015, with equal
    mass instead of equal width). Equal confidences share their mean rightness, so that no order among them matters.
    """
    if not len(right):
        return None
    order = np.argsort(confidence, kind="stable")
    ordered, levelled = confidence[order], _levelled(confidence[order], right[order])
    bins = [part for part in np.array_split(np.arange(len(right)), BINS) if len(part)]
    return float(sum(abs(float((levelled[part] - ordered[part]).sum())) for part in bins) / len(right))


def ece_floor(confidence: Sequence[float], *, seed: int = 0, draws: int = 200) -> float:
    """The mean ECE of answers that are right with exactly the stated probability: what so few incidents show anyway."""
    said = np.asarray(confidence, dtype=np.float64)
    if not len(said):
        return 0.0
    random = np.random.default_rng(seed)
    found = [ece(said, (random.random(len(said)) < said).astype(np.float64)) or 0.0 for _ in range(draws)]
    return float(np.mean(found))


def brier(confidence: Floats, right: Floats) -> float | None:
    """Mean squared difference between confidence and right (Brier, Monthly Weather Review 78, 1950)."""
    return float(np.mean((confidence - right) ** 2)) if len(right) else None


def auroc(confidence: Floats, right: Floats) -> float | None:
    """Chance that a right answer is the surer one of a right and a wrong one, ties counting half; None for one class.

    The Mann-Whitney form: ranks with their mean among ties.
    """
    good = int(right.sum())
    bad = len(right) - good
    if not good or not bad:
        return None
    _, which, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[which]
    return float((ranks[right > 0].sum() - good * (good + 1) / 2) / (good * bad))


def risk_coverage(confidence: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Coverage (1/n to 1) and the share of wrong answers among so many of the surest.

    Among equal confidences any order is as good, so their wrong ones are spread evenly.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = 1 - _levelled(confidence[order], right[order])
    taken = np.arange(1, len(right) + 1, dtype=np.float64)
    return taken / max(1, len(right)), np.cumsum(wrong) / taken


def aurc(confidence: Floats, right: Floats) -> float | None:
    """Mean risk over all coverages (Geifman, Uziel and El-Yaniv, ICLR 2019): less is better."""
    return float(risk_coverage(confidence, right)[1].mean()) if len(right) else None


def _levelled(ordered: Floats, right: Floats) -> Floats:
    """Each entry's mean rightness among those of the same confidence, which stand together."""
    _, which, counts = np.unique(ordered, return_inverse=True, return_counts=True)
    levelled: Floats = (np.bincount(which, weights=right) / counts)[which]
    return levelled


def _quantile(share: float) -> Callable[[Floats], float]:
    return lambda values: float(np.quantile(values, share))


def _mean(key: str, name: str, values: Sequence[float], seed: int, note: str = "") -> Measure:
    """A mean of shares (or of yes and no)."""
    interval = ratio(values, seed=seed) if values else None
    return Measure(key=key, name=name, unit="share", interval=interval, cases=len(values), note=note)


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)
