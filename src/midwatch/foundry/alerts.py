"""Why was someone woken? An alert for an incident: often only a symptom, sometimes nothing, rarely the cause's name."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from midwatch.copilot.model import Severity
from midwatch.foundry.draft import Draft
from midwatch.foundry.names import Printing

NONE_SHARE = 0.30
"""How often there is no alert at all, only a log."""
OWN_SHARE = 0.22
"""How often the alert is the fault's own, which may name the cause; the rest say what hurts."""
_WORSE: tuple[Severity, ...] = ("critical", "high", "high", "medium")


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert as triage is given it. An empty title: nothing fired, somebody sent a log."""

    title: str = ""
    message: str = ""
    service: str = ""
    severity: Severity = "medium"


def alert_for(made: Draft, *, must_fire: bool = False) -> Alert:
    """An alert for an incident in the making."""
    story, stage, source = made.story, made.stage, made.stage.source
    draw = source.random()
    in_job = story is not None and story.ci
    service = made.hurt if in_job or source.random() < 0.5 else made.failing
    if story is not None and story.alerts and draw < OWN_SHARE * (1.6 if story.severity == "info" else 1.0):
        title, message = source.choice(story.alerts)
        return Alert(title=title, message=message, service=service, severity=_severity(story.severity, source))
    if draw > 1 - NONE_SHARE and not must_fire:
        return Alert(service=service if source.random() < 0.5 else "")
    group = "ci" if in_job else "host" if source.random() < 0.12 else "service"
    host = story.voice.host if story is not None else stage.cast.name("host")
    given = {"service": service, "host": host, "pod": stage.cast.pod_of(service), "ns": stage.namespace}
    texts = _texts()[group]
    title, _, message = source.choice(texts["alerts"]).partition("|")
    fill = Printing(stage.cast, source, given).fill
    return Alert(
        title=fill(title.strip(), 0.0),
        message=fill(message.strip(), 0.0),
        service=service,
        severity=source.choice(_WORSE) if group != "ci" else cast(Severity, texts["severity"]),
    )


def _severity(severity: str, source: random.Random) -> Severity:
    return cast(Severity, severity) if source.random() < 0.6 else source.choice(_WORSE)


@lru_cache(maxsize=1)
def _texts() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("alerts.toml").read_text(encoding="utf-8"))
