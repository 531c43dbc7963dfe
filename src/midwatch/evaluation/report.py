"""An evaluation for people and for `results/`: rows with their aims, pictures, and the page.

Aims are those that the house set itself before anything was measured; `holds` is computed from value and aim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from midwatch import results
from midwatch.evaluation import cost, figures, promise
from midwatch.evaluation.ablation import PARTS
from midwatch.evaluation.cost import Curve
from midwatch.evaluation.intervals import Interval, redrawn
from midwatch.evaluation.measures import Measure, answers, measure, share_right
from midwatch.evaluation.promise import Kept
from midwatch.evaluation.verdict import Verdict
from midwatch.results import Direction, Row

AT_ONCE = "asked at once"
"""The fact that says how many incidents were asked about at the same time, which lengthens each."""
LOCAL, BIGGER = "local", "bigger"
BY_SOURCE = ("accuracy", "accuracy_accepted", "accepted", "entity", "cited_f1", "shown_any")
"""Measures that are told for each source of a set."""
WORTH = ("accuracy", "top3", "accepted", "accuracy_accepted", "cited_f1", "sure_wrong", "ece", "auroc", "seconds_p50")
"""Measures that show what a part is worth."""
Aim = tuple[float, Direction]
AIMS: Mapping[str, Mapping[str, Aim]] = {
    "foundry-seeds": {
        "accuracy": (0.95, "at_least"),
        "sure_wrong": (0.02, "at_most"),
        "shown_recall": (0.95, "at_least"),
    },
    "foundry-programs": {
        "accuracy": (0.80, "at_least"),
        "cited_f1": (0.8, "at_least"),
        "false_alarm_precision": (0.9, "at_least"),
        "shown_recall": (0.95, "at_least"),
        "ece": (0.05, "at_most"),
        "auroc": (0.85, "at_least"),
        "promise": (1 - promise.DELTA, "at_least"),
    },
    "incidents": {"accuracy_accepted": (0.60, "at_least"), "accepted_wrong": (promise.ALPHA, "at_most")},
}
"""What the local column should reach, by set and measure. A share that may not exceed its aim is judged by the lower
end of its exact interval where few incidents cannot tell more (`incidents`)."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One set and what each column said about it. `facts` are told on the page (model, settings, seed)."""

    name: str
    columns: Mapping[str, Sequence[Verdict]]
    facts: Mapping[str, str] = field(default_factory=dict)
    price: cost.Price = cost.REFERENCE

    @cached_property
    def measures(self) -> dict[str, dict[str, Measure]]:
        """The numbers of each column."""
        return {name: measure(verdicts) for name, verdicts in self.columns.items()}

    @cached_property
    def promises(self) -> dict[str, Kept]:
        """What random halves say about each column."""
        found = {}
        for name, verdicts in self.columns.items():
            judged = [item for item in verdicts if item.labelled]
            kept = promise.over_splits([item.confidence for item in judged], [item.right for item in judged])
            if kept is not None:
                found[name] = kept
        return found

    @cached_property
    def promises_by_fault(self) -> dict[str, Kept]:
        """The same where whole faults fall into one half: what a fault that chose no threshold gets."""
        found = {}
        for name, verdicts in self.columns.items():
            judged = [item for item in verdicts if item.labelled]
            faults = faults_of(judged)
            if len(set(faults)) > 1:
                said, right = [item.confidence for item in judged], [item.right for item in judged]
                kept = promise.over_splits(said, right, groups=faults)
                if kept is not None:
                    found[name] = kept
        return found

    @property
    def priced(self) -> str:
        """The column whose bill is drawn: the local one, or the first where it was not judged."""
        return LOCAL if LOCAL in self.columns else next(iter(self.columns))

    @cached_property
    def curve(self) -> Curve | None:
        """The bill of that column for each risk."""
        return cost.curve(self.columns[self.priced], price=self.price, bigger=self.columns.get(BIGGER, ()))


def faults_of(verdicts: Sequence[Verdict]) -> list[str]:
    """The fault of each incident, of its program; one group for those that have none."""
    return [f"{item.truth.program}/{item.truth.fault}" for item in verdicts]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a set (a source, a program) with the share that each column has right there."""

    name: str
    cases: int
    accuracy: dict[str, Interval]


def parts(evaluated: Evaluated, key: Callable[[Verdict], str]) -> list[Part]:
    """The set in parts, the greatest first; incidents without a labelled cause are left out."""
    names: dict[str, int] = {}
    for verdict in next(iter(evaluated.columns.values())):
        if verdict.labelled and key(verdict):
            names[key(verdict)] = names.get(key(verdict), 0) + 1
    found = []
    for name in sorted(names, key=lambda item: (-names[item], item)):
        accuracy = {
            column: share_right([item for item in verdicts if key(item) == name])
            for column, verdicts in evaluated.columns.items()
        }
        found.append(Part(name=name, cases=names[name], accuracy=accuracy))
    return found


def rows(evaluated: Evaluated) -> list[Row]:
    """One row for each measure of each column; the local one's carry the aims, and the rules beside them."""
    found = []
    for column, measures in evaluated.measures.items():
        if column in PARTS:
            continue
        beside = evaluated.measures.get("rules", {}) if column != "rules" else {}
        for item in measures.values():
            if item.interval is not None:
                peer = beside[item.key].interval if item.key in beside else None
                row = _row(evaluated.name, column, item, peer)
                if item.unit == "s":
                    row = replace(row, note=f"{evaluated.facts.get(AT_ONCE, '1')} incidents asked at once")
                found.append(_with_faults(row, evaluated.columns[column]) if item.key == "accuracy" else row)
    found += _source_rows(evaluated)
    for promises, of in ((evaluated.promises, ""), (evaluated.promises_by_fault, "faults")):
        for column, kept in promises.items():
            found += _promise_rows(evaluated.name, column, kept, of) if column not in PARTS else []
    if evaluated.curve is not None:
        found += _cost_rows(f"{evaluated.name}, {evaluated.priced}", evaluated.curve)
    return found


def ablation(evaluated: Evaluated) -> list[Row]:
    """What each part is worth: a row for each column without one and each telling measure, beside the whole."""
    whole = evaluated.measures.get(LOCAL, {})
    found = []
    for column in PARTS if whole else ():
        for item in (evaluated.measures[column][key] for key in WORTH) if column in evaluated.measures else ():
            if item.interval is not None:
                found.append(_row(evaluated.name, column, item, whole[item.key].interval, beside="with every part"))
    return found


def _row(name: str, column: str, item: Measure, peer: Interval | None, beside: str = "rules") -> Row:
    assert item.interval is not None
    aim = AIMS.get(name, {}).get(item.key) if column == LOCAL else None
    row = results.row(
        f"{name}, {column}: {item.name}",
        [item.interval.value],
        item.unit,
        target=aim[0] if aim else None,
        direction=aim[1] if aim else None,
        peer=beside if peer else None,
        peer_samples=[peer.value] if peer else (),
        note=item.note,
        extra={"incidents": item.cases},
    )
    row = replace(row, interval=(item.interval.low, item.interval.high))
    if item.key == "accepted_wrong" and aim is not None:
        holds = results.reaches(item.interval.low, *aim)
        row = replace(row, holds=holds, note=f"{row.note}; holds if the lower end is at most the aim")
    return row


def _with_faults(row: Row, verdicts: Sequence[Verdict]) -> Row:
    """The row with the interval over whole faults beside it: wider, since incidents of one fault share its lines."""
    judged = [item for item in verdicts if item.labelled]
    faults = faults_of(judged)
    if len(set(faults)) < 2:
        return row
    wide = redrawn(lambda right: float(right.mean()), [float(item.right) for item in judged], groups=faults)
    assert wide is not None
    ends = {"faults": len(set(faults)), "low over faults": wide.low, "high over faults": wide.high}
    return replace(row, extra={**row.extra, **ends})


def _source_rows(evaluated: Evaluated) -> list[Row]:
    """Where a set has several sources, the numbers of each that tell them apart."""
    found = []
    sources = list(dict.fromkeys(item.source for item in next(iter(evaluated.columns.values()))))
    for source in sources if len(sources) > 1 else ():
        for column, verdicts in evaluated.columns.items():
            measures = answers([item for item in verdicts if item.source == source])
            chosen = [measures[key] for key in BY_SOURCE]
            found += [_row(source, column, item, None) for item in chosen if item.interval is not None]
    return found


def _promise_rows(name: str, column: str, kept: Kept, of: str = "") -> list[Row]:
    aim = AIMS.get(name, {}).get("promise") if column == LOCAL and not of else None
    halves = f"halves of {of}" if of else "halves"
    note = f"threshold from one random half, judged on the other, {kept.splits} times, α = {kept.alpha:g}"
    return [
        results.row(
            f"{name}, {column}: {halves} that keep the promise",
            [kept.share_kept],
            "share",
            target=aim[0] if aim else None,
            direction=aim[1] if aim else None,
            note=note,
            extra={"accepted": kept.mean_accepted, "worst": kept.worst_wrong},
        ),
        results.row(
            f"{name}, {column}: accepted and wrong, mean of the {halves}",
            [kept.mean_wrong],
            "share",
            target=kept.alpha if aim else None,
            direction="at_most" if aim else None,
            note=note,
        ),
    ]


def _cost_rows(name: str, curve: Curve) -> list[Row]:
    point = curve.at(promise.ALPHA)
    note = (
        f"{curve.price.name}, {curve.price.date}: {curve.price.usd_per_mtok_in:g} and "
        f"{curve.price.usd_per_mtok_out:g} USD for a million tokens in and out; {curve.sent_tokens:.0f} tokens sent"
    )
    extra: dict[str, float | str] = {f"alpha {item.alpha:g}": item.usd_per_1000 for item in curve.points}
    return [
        results.row(f"{name}: goes up at α = {promise.ALPHA:g}", [point.escalated], "share"),
        results.row(
            f"{name}: cost of 1,000 incidents at α = {promise.ALPHA:g}",
            [point.usd_per_1000],
            "USD",
            peer="always the bigger host",
            peer_samples=[curve.always_usd_per_1000],
            evidence="estimated",
            note=note,
            extra=extra,
        ),
    ]


def write(evaluated: Evaluated, folder: Path, *, seed: int | None = None) -> list[Path]:
    """Rows and pictures of one set below a folder."""
    table = folder / f"eval-{evaluated.name}.json"
    results.write(table, rows(evaluated), seed=seed)
    paths = [table]
    if worth := ablation(evaluated):
        paths.append(folder / f"eval-{evaluated.name}-ablation.json")
        results.write(paths[-1], worth, seed=seed)
    for kind, picture in pictures(evaluated).items():
        path = folder / f"eval-{evaluated.name}-{kind}.svg"
        path.write_text(picture, encoding="utf-8")
        paths.append(path)
    return paths


def pictures(evaluated: Evaluated) -> dict[str, str]:
    """The pictures of a set by kind; those that its incidents do not allow are left out."""
    labelled = {name: found for name, found in evaluated.columns.items() if any(item.labelled for item in found)}
    if not labelled:
        return {}
    found = {
        "reliability": figures.reliability(labelled),
        "risk-coverage": figures.risk_against_coverage(labelled),
    }
    if evaluated.curve is not None:
        found["escalated"] = figures.share_escalated(evaluated.curve, promise.ALPHA)
        found["cost"] = figures.bill(evaluated.curve, promise.ALPHA)
    return found
