"""A diagnosis in a terminal: what is wrong, how sure, the cited lines with their numbers, what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from midwatch.copilot.parsing import clean, clip

if TYPE_CHECKING:
    from midwatch.copilot.model import Finding

MAX_CITED_CHARS = 600
_COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "green"}
_ACTIONS = {
    "accept": ("sure enough to act on", "green"),
    "escalate": ("not sure: ask the bigger model", "yellow"),
    "ask_person": ("not sure: read the lines yourself", "yellow"),
}


def show(finding: Finding, console: Console | None = None) -> None:
    """Print a finding. Colours only on a terminal, never with NO_COLOR; log text is printed as text, without control codes."""
    console = console or Console(highlight=False, soft_wrap=False)
    diagnosis = finding.diagnosis
    evidence = finding.evidence
    action, action_style = _ACTIONS[diagnosis.action]
    head = Text.assemble(
        (diagnosis.severity.upper(), _COLOURS[diagnosis.severity]), "  ", (diagnosis.category, "bold"),
        "  ", (clean(diagnosis.entity) if diagnosis.entity != "unknown" else "", "cyan"),
    )
    sure = Text.assemble(
        "confidence ", (f"{diagnosis.confidence:.2f}", "bold"), ("" if diagnosis.calibrated else " (uncalibrated)", "dim"),
        ", ", (action, action_style),
    )
    parts: list[Text | Padding] = [head, sure, Text(), Text(clean(diagnosis.summary)), Text()]
    if diagnosis.citations:
        parts.append(Text("The lines that say so", style="bold"))
        width = max(len(str(item.line_number)) for item in diagnosis.citations)
        parts += [
            Padding(Text.assemble(
                (f"{item.line_number:>{width}}", "yellow"), (" │ ", "dim"), clip(clean(item.text), MAX_CITED_CHARS),
            ), (0, 0, 0, 2))
            for item in diagnosis.citations
        ]
        parts.append(Text())
    parts.append(Text("Next", style="bold"))
    parts += [Padding(Text(f"{number}. {clean(step)}"), (0, 0, 0, 2)) for number, step in enumerate(diagnosis.next_steps, 1)]
    others = ", ".join(f"{item.category} {item.score:.2f}" for item in evidence.ranking[:3] if item.category != diagnosis.category)
    foot = [
        f"{evidence.total_lines} lines, {evidence.total_templates} templates, {len(evidence.lines)} shown",
        f"{diagnosis.model}: {diagnosis.prompt_tokens} + {diagnosis.completion_tokens} tokens, "
        f"{diagnosis.latency_ms / 1000:.1f} s, ${diagnosis.cost_usd:.6f}",
    ]
    if others:
        foot.insert(0, f"also considered: {others}")
    parts.append(Text())
    parts += [Text(line, style="dim") for line in foot]
    if diagnosis.note:
        parts.append(Text(f"note: {clean(diagnosis.note)}", style="dim"))
    console.print(Group(*parts))
