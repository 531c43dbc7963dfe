"""Read the recorded incidents: the log with its times, the alert, the truth. For the replay, tests and benches."""

from __future__ import annotations

import copy
import dataclasses
import json
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "incidents"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One incident. `lines[n - 1]` is line n of log.txt; `times_ns` are its lines' nanoseconds since the epoch.

    `delivery` names the hooks in the order in which they are called: "loki+alertmanager", "alertmanager+loki", "loki"
    or "text". `cause_lines` are the numbers of the lines that show the cause; `alternatives` are categories that are
    accepted beside `category`, where the taxonomy is ambiguous.
    """

    name: str
    service: str
    delivery: str
    title: str
    category: str
    alternatives: tuple[str, ...]
    severity: str
    entity: str
    cause_lines: tuple[int, ...]
    lines: tuple[str, ...]
    times_ns: tuple[int, ...]
    alert: dict[str, Any] | None


def fingerprint(labels: dict[str, str]) -> str:
    """Prometheus' fingerprint of a label set: FNV-1a over sorted names and values (common/model/signature.go)."""
    value = 14695981039346656037
    for byte in b"".join(k.encode() + b"\xff" + v.encode() + b"\xff" for k, v in sorted(labels.items())):
        value = (value ^ byte) * 1099511628211 % 2**64
    return f"{value:016x}"


def renamed(recording: Recording, service: str) -> Recording:
    """The same incident of a service with another name, so that an app does not take it for the one it knows."""
    alert = copy.deepcopy(recording.alert)
    if alert is not None:
        old = recording.service
        for labels in (alert["groupLabels"], alert["commonLabels"], *(item["labels"] for item in alert["alerts"])):
            labels.update({name: service for name, value in labels.items() if value == old})
        alert["groupKey"] = alert["groupKey"].replace(f'"{old}"', f'"{service}"')
        for item in alert["alerts"]:
            item["fingerprint"] = fingerprint(item["labels"])
    return dataclasses.replace(recording, service=service, alert=alert)


def time_ns(line: str) -> int:
    """The time that a recorded line starts with, nanoseconds since the epoch."""
    at = datetime.fromisoformat(line.split(" ", 1)[0])
    return int(at.timestamp()) * 10**9 + at.microsecond * 1000


def load(folder: Path) -> Recording:
    """Read one folder. Raises `OSError`, `KeyError` or `ValueError` where it is incomplete."""
    truth = tomllib.loads((folder / "truth.toml").read_text(encoding="utf-8"))
    lines = tuple((folder / "log.txt").read_text(encoding="utf-8").splitlines())
    alert = folder / "alert.json"
    return Recording(
        name=truth["name"],
        service=truth["service"],
        delivery=truth["delivery"],
        title=truth["title"],
        category=truth["category"],
        alternatives=tuple(truth["alternatives"]),
        severity=truth["severity"],
        entity=truth["entity"],
        cause_lines=tuple(truth["lines"]),
        lines=lines,
        times_ns=tuple(time_ns(line) for line in lines),
        alert=json.loads(alert.read_text(encoding="utf-8")) if alert.exists() else None,
    )


def load_all(folder: Path = FOLDER) -> list[Recording]:
    """Every recorded incident, by name."""
    return [load(path.parent) for path in sorted(folder.glob("*/truth.toml"))]
