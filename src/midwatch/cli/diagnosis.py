"""A diagnosis in a terminal: what is wrong, how sure, the cited lines with their numbers, what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from midwatch.copilot.parsing import clean, clip

if TYPE_CHECKING:
    from midwatch.copilot.model import Finding

MAX_CITED_CHARS = 600
_COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "green"}
_ACTIONS = {
    "accept": ("above the threshold", "green"),
    "escalate": ("not sure: ask the bigger model", "yellow"),
    "ask_person": ("not sure: read the lines yourself", "yellow"),
}


def show(finding: Finding, console: Console | None = None) -> None:
    """Print a finding. Colours only on a terminal, never with NO_COLOR; log text is printed without control codes.

    On a terminal long lines are folded beside their number; in a pipe each stays one line.
    """
    console = console or Console(highlight=False)
    diagnosis = finding.diagnosis

    def say(*parts: tuple[str, str] | str) -> None:
        console.print(Text.assemble(*parts), soft_wrap=not console.is_terminal)

    action, action_style = _ACTIONS[diagnosis.action]
    entity = clean(diagnosis.entity) if diagnosis.entity != "unknown" else ""
    say(
        (diagnosis.severity.upper(), _COLOURS[diagnosis.severity]),
        "  ",
        (diagnosis.category, "bold"),
        "  " if entity else "",
        (entity, "cyan"),
    )
    say(
        "confidence ",
        (f"{diagnosis.confidence:.2f}", "bold"),
        ("" if diagnosis.calibrated else " (uncalibrated)", "dim"),
        ", ",
        (action, action_style),
    )
    say()
    say(clean(diagnosis.summary))
    say()
    if diagnosis.citations:
        say(("The lines that say so", "bold"))
        cited = [
            (str(item.line_number), "yellow", clip(clean(item.text), MAX_CITED_CHARS)) for item in diagnosis.citations
        ]
        _columns(console, cited, " │ ")
        say()
    say(("Next", "bold"))
    _columns(console, [(f"{number}.", "", clean(step)) for number, step in enumerate(diagnosis.next_steps, 1)], " ")
    say()
    for line in _foot(finding):
        say((line, "dim"))


def _columns(console: Console, rows: list[tuple[str, str, str]], between: str) -> None:
    """Rows of (label, its style, text), the labels right-aligned."""
    width = max(len(label) for label, _, _ in rows)
    if not console.is_terminal:
        for label, _, text in rows:
            console.print(Text(f"  {label:>{width}}{between}{text}"), soft_wrap=True)
        return
    table = Table.grid(padding=0)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, style, text in rows:
        table.add_row(Text.assemble("  ", (f"{label:>{width}}", style), (between, "dim")), Text(text))
    console.print(table)


def _foot(finding: Finding) -> list[str]:
    diagnosis, evidence = finding.diagnosis, finding.evidence
    others = [
        f"{item.category} {item.score:.2f}" for item in diagnosis.ranking[:3] if item.category != diagnosis.category
    ]
    return [
        *([f"also considered: {', '.join(others)}"] if others else []),
        f"{evidence.total_lines} lines, {evidence.total_templates} templates, {len(evidence.lines)} shown",
        f"{diagnosis.model}: {diagnosis.prompt_tokens} + {diagnosis.completion_tokens} tokens, "
        f"{diagnosis.latency_ms / 1000:.1f} s, ${diagnosis.cost_usd:.6f}",
        *([f"note: {clean(diagnosis.note)}"] if diagnosis.note else []),
    ]
