"""Read the recorded incidents: the log with its times, the alert, the truth. For the replay, tests and benches."""

from __future__ import annotations

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
