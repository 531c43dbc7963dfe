"""An evaluation for people: rows for `results/`, every answer as JSON lines, a picture, and one page.

The page needs no other file and nothing from elsewhere; what models said is text in it, never markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from midwatch import results
from midwatch.tuning import plot
from midwatch.tuning.bootstrap import LEVEL, Interval
from midwatch.tuning.evaluation import Evaluation
from midwatch.tuning.measures import BASE, CONTESTANTS, LEAKAGE, RETENTION, STYLE_RATE, TUNED, Measure
from midwatch.tuning.plot import LABELS

Spans = Callable[[str], Sequence[tuple[int, int]]]
"""Where in a text its markers of the style are: starts and ends, in order, apart."""

ROWS, ANSWERS, PICTURE, PAGE = "evaluation.json", "answers.jsonl", "evaluation.svg", "evaluation.html"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was evaluated, in words: a name, and facts (label and value) of the recipe, the run and the machine."""

    name: str
    facts: Mapping[str, str]


def rows(evaluation: Evaluation) -> list[results.Row]:
    """One row per measure and contestant; the tuned one's carries the aim, and the base beside it."""
    found = []
    for measure in evaluation.measures:
        base = measure.intervals[BASE]
        for contestant, interval in measure.intervals.items():
            if interval is None:
                continue
            tuned = contestant == TUNED
            row = results.row(
                f"{measure.name}, {LABELS[contestant]}",
                [interval.value],
                measure.unit,
                target=measure.aim.value if tuned and measure.aim else None,
                direction=measure.aim.direction if tuned and measure.aim else None,
                peer=LABELS[BASE] if tuned and base else None,
                peer_samples=[base.value] if tuned and base else (),
                note=measure.note,
                extra=_extra(measure, contestant),
            )
            runs = len(measure.per_seed) if tuned else 1
            found.append(replace(row, interval=(interval.low, interval.high), runs=runs))
    return found


def holds(measure: Measure) -> bool | None:
    """Whether the tuned model reaches the aim; None if there is no aim or no figure."""
    interval = measure.intervals[TUNED]
    if measure.aim is None or interval is None:
        return None
    return results.reaches(interval.value, measure.aim.value, measure.aim.direction)


def write(evaluation: Evaluation, subject: Subject, out: Path, *, spans: Spans, device: str = "cpu") -> list[Path]:
    """Write rows, answers, picture and page into the folder `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    results.write(out / ROWS, rows(evaluation), device=device)
    lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in evaluation.records)
    (out / ANSWERS).write_text("".join(lines), encoding="utf-8")
    (out / PICTURE).write_text(picture(evaluation), encoding="utf-8")
    (out / PAGE).write_text(render(evaluation, subject, spans=spans), encoding="utf-8")
    return [out / name for name in (PAGE, PICTURE, ROWS, ANSWERS)]


def picture(evaluation: Evaluation) -> str:
    """Style rate against retention, as SVG."""
    return plot.draw(evaluation.measure(STYLE_RATE), evaluation.measure(RETENTION))


def render(evaluation: Evaluation, subject: Subject, *, spans: Spans) -> str:
    """The whole page as HTML; style and picture are inside."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = results.figure
    return environment.get_template("evaluation.html").render(
        subject=subject,
        evaluation=evaluation,
        contestants=[(name, LABELS[name]) for name in CONTESTANTS],
        verdicts=[_verdict(evaluation.measure(name)) for name in (STYLE_RATE, RETENTION, LEAKAGE)],
        measures=[_row(measure) for measure in evaluation.measures],
        personas=sorted(evaluation.persona_rates.items(), key=lambda item: (item[0] != evaluation.persona, -item[1])),
        shown=_shown(evaluation, spans),
        level=f"{LEVEL:.0%}".replace("%", " %"),
        sheet=Markup((_TEMPLATES / "evaluation.css").read_text("utf-8")),  # noqa: S704 - our own file
        picture=Markup(picture(evaluation)),  # noqa: S704 - drawn from numbers and our own words
    )


def lines(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """The measures for a terminal: name and unit, three figures, the tuned one's interval, its aim and the verdict."""
    found = []
    for measure in evaluation.measures:
        figures = [_figure(measure.intervals[name]) for name in CONTESTANTS]
        verdict = {None: "", True: ": yes", False: ": no"}[holds(measure)]
        aim = f"{_aim(measure)}{verdict}"
        found.append((f"{measure.name}, {measure.unit}", *figures, _reach(measure.intervals[TUNED]), aim))
    return found


def name_of(adapter: Path) -> str:
    """What to call an adapter: its recipe's name, or its folder's."""
    recipe = _read(adapter.parent / "run.json").get("recipe")
    return str(recipe["name"]) if isinstance(recipe, dict) and "name" in recipe else adapter.resolve().name


def facts_of(adapter: Path) -> dict[str, str]:
    """What a page says of an adapter, from what its run left beside it; less where that is not there."""
    config, summary = _read(adapter / "adapter_config.json"), _read(adapter.parent / "summary.json")
    recipe = _read(adapter.parent / "run.json").get("recipe", {})
    size_mb = (adapter / "adapter_model.safetensors").stat().st_size / 1e6
    targets = ", ".join(sorted(map(str, config.get("target_modules") or ())))
    facts = {
        "adapter": f"rank {config.get('r')}, alpha {config.get('lora_alpha')}, {size_mb:.2f} MB, on {targets}",
    }
    if training := recipe.get("training"):
        facts["recipe"] = (
            f"{recipe['name']}: {'NF4' if recipe['four_bit'] else 'bfloat16'} base, learning rate "
            f"{training['learning_rate']:g}, {training['rows'] * training['accumulate']} × {training['row_tokens']} "
            "tokens a step"
        )
    if summary:
        facts["data"] = f"{summary['conversations']:,} conversations, {summary['tokens']:,} tokens"
        facts["training"] = (
            f"{summary['steps']} steps in {summary['total_s'] / 60:.1f} min, {summary['tokens_per_s']:,.0f} tokens/s, "
            f"loss {summary['first_loss']:.3f} to {summary['last_loss']:.3f}, "
            f"peak memory {summary['peak_bytes'] / 2**30:.2f} GiB"
        )
    return facts


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty if it is not there or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _extra(measure: Measure, contestant: str) -> dict[str, float | str]:
    """What an interval is over, and every seed's own figure."""
    extra: dict[str, float | str] = {"interval": f"{LEVEL:.0%} bootstrap", "prompts": measure.prompts}
    if contestant == TUNED:
        extra |= {f"seed {index}": value for index, value in enumerate(measure.per_seed)}
    return extra


def _verdict(measure: Measure) -> dict[str, Any]:
    """A figure with its aim, large."""
    names = {
        STYLE_RATE: "in style",
        RETENTION: "right answers kept",
        LEAKAGE: "in style though asked for plain English",
    }
    return {
        "name": names[measure.name],
        "value": _words(measure.intervals[TUNED], measure.unit),
        "reach": _reach(measure.intervals[TUNED]),
        "aim": _aim(measure),
        "holds": holds(measure),
    }


def _row(measure: Measure) -> dict[str, Any]:
    """A line of the table."""
    return {
        "name": measure.name,
        "unit": measure.unit,
        "cells": {
            name: {"value": _figure(interval), "reach": _reach(interval)}
            for name, interval in measure.intervals.items()
        },
        "aim": _aim(measure),
        "holds": holds(measure),
        "note": measure.note,
        "prompts": measure.prompts,
    }


def _shown(evaluation: Evaluation, spans: Spans) -> list[dict[str, Any]]:
    """The prompts that people read, each with everybody's answer; the tuned one's is the first seed's."""
    found: dict[int, dict[str, Any]] = {}
    for record in evaluation.records:
        if record.set != "shown" or (record.contestant == TUNED and record.seed != evaluation.seeds[0]):
            continue
        question = next(item["content"] for item in reversed(record.messages) if item["role"] == "user")
        entry = found.setdefault(record.index, {"question": question, "answers": {}})
        entry["answers"][record.contestant] = {
            "pieces": _pieces(record.answer, spans(record.answer)),
            "styled": record.styled,
        }
    return [found[index] for index in sorted(found)]


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """The text cut at its markers: (piece, whether it is one)."""
    pieces = []
    at = 0
    for start, end in spans:
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    pieces.append((text[at:], False))
    return [(piece, marked) for piece, marked in pieces if piece]


def _figure(interval: Interval | None) -> str:
    """A value as people read it, to three digits."""
    return "–" if interval is None else _short(interval.value)


def _words(interval: Interval | None, unit: str) -> str:
    return "–" if interval is None else f"{_short(interval.value)} {unit}"


def _reach(interval: Interval | None) -> str:
    return "" if interval is None else f"{_short(interval.low)} to {_short(interval.high)}"


def _short(value: float) -> str:
    """Three digits, without zeros after the point."""
    text = results.figure(value)
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def _aim(measure: Measure) -> str:
    if measure.aim is None:
        return ""
    return f"{results.SIGNS[measure.aim.direction]} {measure.aim.value:g} {measure.unit}"
