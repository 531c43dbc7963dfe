"""A measurement as a row: what was measured, beside what, against which aim, on which machine, from which commit.

Every bench and every lab writes its figures through `write`; docs quote the files and nothing else. `holds` is computed
here from value and target, so no row can claim what its number does not say.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

Evidence = Literal["measured", "simulated", "estimated", "reported"]
Direction = Literal["at_most", "at_least"]
SIGNS: dict[Direction, str] = {"at_most": "≤", "at_least": "≥"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `value` is the median of `runs`; `interval` is their least and greatest."""

    name: str
    value: float
    unit: str
    interval: tuple[float, float] | None = None
    runs: int = 1
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    target: float | None = None
    direction: Direction | None = None
    holds: bool | None = None
    evidence: Evidence = "measured"
    note: str = ""
    extra: dict[str, float | str] = field(default_factory=dict)


def row(
    name: str,
    samples: Sequence[float],
    unit: str,
    *,
    target: float | None = None,
    direction: Direction | None = None,
    peer: str | None = None,
    peer_samples: Sequence[float] = (),
    evidence: Evidence = "measured",
    note: str = "",
    extra: dict[str, float | str] | None = None,
) -> Row:
    """Make a row from the samples of several runs, ours and a peer's, taken in the same run.

    `ratio` is our median over the peer's. `holds` compares the median with `target` in `direction`.
    """
    assert samples, f"{name}: no samples"
    assert (target is None) == (direction is None), f"{name}: a target needs a direction"
    value = statistics.median(samples)
    peer_value = statistics.median(peer_samples) if peer_samples else None
    holds = None
    if target is not None and direction is not None:
        holds = reaches(value, target, direction)
    return Row(
        name=name,
        value=value,
        unit=unit,
        interval=(min(samples), max(samples)),
        runs=len(samples),
        peer=peer,
        peer_value=peer_value,
        ratio=value / peer_value if peer_value else None,
        target=target,
        direction=direction,
        holds=holds,
        evidence=evidence,
        note=note,
        extra=extra or {},
    )


def reaches(value: float, target: float, direction: Direction) -> bool:
    """Whether a figure reaches its aim."""
    return value <= target if direction == "at_most" else value >= target


def write(path: Path, rows: Sequence[Row], *, device: str = "cpu", seed: int | None = None) -> None:
    """Write rows with the machine, the versions, the commit and the date beside them, replacing the file."""
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": device,
        "machine": _machine(),
        "versions": _versions(),
        "seed": seed,
        "rows": [asdict(item) for item in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def figure(value: float) -> str:
    """A number as people write it: three significant digits, no exponent for everyday sizes, thousands separated."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def read(path: Path) -> list[Row]:
    """The rows of a results file."""
    rows = []
    for item in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        interval = item.pop("interval")
        rows.append(Row(interval=tuple(interval) if interval else None, **item))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, for a terminal and for docs."""
    lines = ["| what | value | spread | beside us | ratio | aim | holds |", "|---|---|---|---|---|---|---|"]
    for item in rows:
        low, high = item.interval or (item.value, item.value)
        spread = f"{figure(low)} to {figure(high)}" if item.runs > 1 or low < high else ""
        spread += f", {item.runs} runs" if item.runs > 1 else ""
        peer = f"{item.peer}: {figure(item.peer_value)}" if item.peer and item.peer_value is not None else ""
        sign = SIGNS[item.direction] if item.direction else ""
        aim = f"{sign} {figure(item.target)}" if item.target is not None else ""
        holds = "" if item.holds is None else ("yes" if item.holds else "**no**")
        ratio = f"{item.ratio:.2f}" if item.ratio is not None else ""
        lines.append(
            f"| {item.name} | {figure(item.value)} {item.unit} | {spread} | {peer} | {ratio} | {aim} | {holds} |"
        )
    return "\n".join(lines)


def _commit() -> str:
    """The commit that was measured, marked dirty if anything but the results themselves differs from it."""
    head = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return f"{head or 'unknown'}{'-dirty' if changed else ''}"


def _git(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _machine() -> dict[str, str | int]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count() or 1, "system": platform.system()}


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in ("midwatch", "torch", "tokenizers", "llguidance", "starlette", "sqlalchemy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
