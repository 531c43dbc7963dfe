"""The nouns of a recording, and the three files of its folder: log.txt, alert.json, truth.toml."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from recorder.stage import Stage

Delivery = Literal["loki+alertmanager", "alertmanager+loki", "loki", "text"]


class RecordError(Exception):
    """A recording cannot be made; the message says what is missing and what to do."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """What Prometheus would tell Alertmanager: the rule's name, its labels' severity, its annotations and query."""

    name: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str
    expr: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One thing to break. `shows` are patterns of the lines that show the cause, chosen by reading a recording.

    `delivery` names the hooks in the order in which they are called. `needs` are programs (see `house.PACKAGES`);
    `root` is True where another user, a memory cgroup or the kernel log is needed.
    """

    name: str
    service: str
    delivery: Delivery
    category: str
    severity: Literal["critical", "high", "medium", "low", "info"]
    entity: str
    title: str
    broken: str
    reasoning: str
    shows: tuple[str, ...]
    run: Callable[[Stage], None]
    alternatives: tuple[str, ...] = ()
    alert: Alert | None = None
    needs: tuple[str, ...] = ()
    root: bool = False

    def telling(self, lines: list[str]) -> list[int]:
        """Numbers (from 1) of the lines that show the cause. Raises `RecordError` if a pattern is not there."""
        patterns = [re.compile(pattern) for pattern in self.shows]
        for pattern in patterns:
            if not any(pattern.search(line) for line in lines):
                raise RecordError(f"{self.name}: no recorded line matches {pattern.pattern!r}; the fault did not show.")
        return [number for number, line in enumerate(lines, 1) if any(p.search(line) for p in patterns)]


def truth_toml(incident: Incident, *, lines: list[int], facts: dict[str, Any]) -> str:
    """The label of a recording as TOML. `facts` adds what was measured: recorded, host, replaced, versions."""
    versions: dict[str, str] = facts["versions"]
    rows: list[tuple[str, Any]] = [
        ("name", incident.name),
        ("service", incident.service),
        ("delivery", incident.delivery),
        ("title", incident.title),
        ("category", incident.category),
        ("alternatives", list(incident.alternatives)),
        ("severity", incident.severity),
        ("entity", incident.entity),
        ("lines", lines),
        ("broken", incident.broken),
        ("reasoning", incident.reasoning),
        ("host", facts["host"]),
        ("recorded_at", facts["recorded_at"]),
        ("replaced", facts["replaced"]),
    ]
    # A JSON string, number or list of them is a TOML one too.
    body = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in rows)
    table = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in sorted(versions.items()))
    return f"# Written by demo/record.py; the labels are in demo/recorder/incidents/.\n{body}\n[versions]\n{table}"
