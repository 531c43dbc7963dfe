"""The page of an evaluation: one file, nothing from elsewhere, every wrong answer readable.

What logs and models said is text in it, never markup, and has its control characters taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from midwatch import __version__, results
from midwatch.copilot.parsing import clean, clip
from midwatch.evaluation import figures, report
from midwatch.evaluation.intervals import LEVEL, Interval
from midwatch.evaluation.measures import SURE, Measure
from midwatch.evaluation.promise import Kept
from midwatch.evaluation.report import Evaluated
from midwatch.evaluation.verdict import Verdict

MAX_LINE_CHARS = 400
_TEMPLATES = Path(__file__).parent / "templates"
BREAKDOWNS: tuple[tuple[str, Callable[[Verdict], str]], ...] = (
    ("source", lambda item: item.source),
    ("program", lambda item: item.truth.program),
    ("category", lambda item: item.truth.category),
    ("what was done to it", lambda item: " + ".join(item.truth.traits) or "plain"),
)
_CAPTIONS = {
    "reliability": "Stated confidence against the share that is right, in bins of equal mass, with exact intervals. "
    "A point below the diagonal claims too much.",
    "risk-coverage": "Share of wrong answers when only the surest are answered. Lower is better; a flat start means "
    "that the surest answers are safe.",
    "escalated": "Share of incidents that goes up, and the share that is accepted and wrong, which must stay below the "
    "dashed line.",
    "cost": "What 1,000 incidents cost for each risk, beside asking the bigger host about all of them.",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of evidence: whether it shows the cause (or says the same as one that does), and whether it was cited."""

    number: int
    text: str
    true: bool
    cited: bool


def write(evaluated: Sequence[Evaluated], path: Path, *, facts: dict[str, str] | None = None) -> Path:
    """The page of some sets. The same verdicts give the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("triage.html").render(
        sheet=Markup((_TEMPLATES / "triage.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        sets=[_set(item) for item in evaluated],
        facts=facts or {},
        version=__version__,
        level=f"{LEVEL:.0%}",
        sure=SURE,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _set(evaluated: Evaluated) -> dict[str, Any]:
    first = next(iter(evaluated.columns.values()))
    rows = report.rows(evaluated)
    return {
        "name": evaluated.name,
        "incidents": len(first),
        "columns": list(evaluated.columns),
        "facts": evaluated.facts,
        "aims": [_aim(row, evaluated.name) for row in rows if row.target is not None],
        "measures": _measures(evaluated),
        "promises": _promises(evaluated),
        "pictures": [
            {"svg": Markup(svg), "caption": _CAPTIONS[kind]}  # noqa: S704 - drawn here, its words escaped
            for kind, svg in report.pictures(evaluated).items()
        ],
        "confusions": [
            {"column": column, "svg": Markup(figures.confusion(verdicts))}  # noqa: S704 - likewise
            for column, verdicts in evaluated.columns.items()
            if any(item.labelled for item in verdicts)
        ],
        "breakdowns": [
            {"name": name, "parts": found} for name, key in BREAKDOWNS if len(found := report.parts(evaluated, key)) > 1
        ],
        "wrong": [
            {"column": column, "answers": [_wrong(item) for item in wrong(verdicts)]}
            for column, verdicts in evaluated.columns.items()
        ],
    }


def wrong(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Answers that are not right, the surest first, abstentions last."""
    found = [item for item in verdicts if item.labelled and not item.right]
    return sorted(found, key=lambda item: (not item.answered, -item.confidence, item.incident))


def _measures(evaluated: Evaluated) -> list[dict[str, Any]]:
    columns = evaluated.measures
    return [
        {
            "name": item.name,
            "note": item.note,
            "cells": [_cell(measures[key]) for measures in columns.values()],
        }
        for key, item in next(iter(columns.values())).items()
    ]


def _promises(evaluated: Evaluated) -> list[dict[str, Any]]:
    found = evaluated.promises
    if not found:
        return []
    some = next(iter(found.values()))
    note = f"threshold from one random half, judged on the other, {some.splits} times, α = {some.alpha:g}"
    shares: tuple[tuple[str, str, Callable[[Kept], float]], ...] = (
        ("halves that keep the promise", note, lambda kept: kept.share_kept),
        ("accepted and wrong, mean of the halves", "", lambda kept: kept.mean_wrong),
        ("accepted, mean of the halves", "", lambda kept: kept.mean_accepted),
    )
    return [
        {
            "name": name,
            "note": words,
            "cells": [results.figure(of(found[column])) if column in found else "–" for column in evaluated.columns],
        }
        for name, words, of in shares
    ]


def _cell(measure: Measure) -> dict[str, str]:
    found = measure.interval
    if found is None:
        return {"value": "–", "reach": ""}
    value = results.figure(found.value) + (f" {measure.unit}" if measure.unit in ("s", "USD") else "")
    return {"value": value, "reach": ", ".join(part for part in (reach(found), f"n = {measure.cases}") if part)}


def reach(interval: Interval) -> str:
    """The ends of an interval; nothing where they are one."""
    if interval.low == interval.high:
        return ""
    return f"{results.figure(interval.low)} to {results.figure(interval.high)}"


def _aim(row: results.Row, name: str) -> dict[str, Any]:
    assert row.target is not None and row.direction is not None
    return {
        "name": row.name.removeprefix(f"{name}, {report.LOCAL}: "),
        "value": results.figure(row.value),
        "reach": reach(Interval(value=row.value, low=row.interval[0], high=row.interval[1])) if row.interval else "",
        "aim": f"{results.SIGNS[row.direction]} {row.target:g}",
        "holds": row.holds,
    }


def _wrong(verdict: Verdict) -> dict[str, Any]:
    truth = verdict.truth
    shown = {line.number for line in verdict.evidence}
    cited = dict(zip(verdict.cited, verdict.cited_text, strict=False))
    lines = [
        Line(number=line.number, text=_text(line.text), true=line.true, cited=line.number in cited)
        for line in verdict.evidence
    ]
    lines += [
        Line(number=number, text=_text(text), true=number in truth.lines, cited=True)
        for number, text in cited.items()
        if number not in shown
    ]
    return {
        "id": verdict.incident,
        "said": verdict.category,
        "truth": truth.category,
        "also": truth.accepted,
        "confidence": f"{verdict.confidence:.2f}",
        "accepted": verdict.accepted and verdict.answered,
        "alert": _text(verdict.alert),
        "entity": _text(verdict.entity),
        "entities": truth.entities,
        "summary": _text(verdict.summary),
        "cause": _text(truth.cause),
        "ranking": verdict.ranking[:3],
        "note": _text(verdict.note),
        "first": f"{verdict.first_category} ({verdict.first_confidence:.2f})" if verdict.first_category else "",
        "lines": sorted(lines, key=lambda line: line.number),
        "missed": verdict.truth_total - verdict.truth_shown,
        "total": verdict.lines,
    }


def _text(text: str) -> str:
    return clip(clean(text), MAX_LINE_CHARS)
