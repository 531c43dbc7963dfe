"""A labelled incident: what triage is given, and what is true about it."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from midwatch.copilot.model import Case, Severity
from midwatch.errors import FoundryError


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true about an incident.

    `category` is the root cause; any of `accepted` is right too. `entities` are names that are right (empty: unknown).
    `lines` are the 1-based numbers of the lines that show the cause (empty: not known). `program` is the family that
    failed, `traits` say what was done to the incident (`recovered`, `two_faults`, `skewed`, `injected`, ...).
    """

    category: str
    accepted: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    lines: frozenset[int] = frozenset()
    severity: str = ""
    cause: str = ""
    program: str = ""
    fault: str = ""
    templated: bool = False
    traits: tuple[str, ...] = ()

    def right(self, category: str) -> bool:
        """Whether a category is a right answer."""
        return category == self.category or category in self.accepted


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A case with its truth. `source` names the set it is from; an empty `truth.category` means: cause not labelled."""

    id: str
    source: str
    case: Case
    truth: Truth


def write(path: Path, incidents: Iterable[Incident]) -> int:
    """Write incidents as JSON lines (gzipped where the name ends in .gz), the same bytes for the same incidents."""
    count = 0
    with path.open("wb") as plain:
        stream: Any = gzip.GzipFile(fileobj=plain, mode="wb", filename="", mtime=0) if path.suffix == ".gz" else plain
        for incident in incidents:
            stream.write(orjson.dumps(_as_object(incident)) + b"\n")
            count += 1
        if stream is not plain:
            stream.close()
    return count


def read(path: Path) -> Iterator[Incident]:
    """Incidents of a file. Raises `FoundryError` for a file that holds something else."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for line in stream:
                yield _from_object(orjson.loads(line))
    except (OSError, EOFError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise FoundryError(
            f"{path} holds no labelled incidents ({error}).", "midwatch foundry make writes such a file."
        ) from error


def _as_object(incident: Incident) -> dict[str, Any]:
    case, truth = incident.case, incident.truth
    return {
        "id": incident.id,
        "source": incident.source,
        "service": case.service,
        "title": case.title,
        "severity": case.severity,
        "message": case.message,
        "truth": {
            "category": truth.category,
            "accepted": list(truth.accepted),
            "entities": list(truth.entities),
            "lines": sorted(truth.lines),
            "severity": truth.severity,
            "cause": truth.cause,
            "program": truth.program,
            "fault": truth.fault,
            "templated": truth.templated,
            "traits": list(truth.traits),
        },
        "lines": list(case.lines),
    }


def _from_object(value: dict[str, Any]) -> Incident:
    truth = value["truth"]
    return Incident(
        id=value["id"],
        source=value["source"],
        case=Case(
            service=value["service"],
            title=value["title"],
            severity=cast(Severity, value["severity"]),
            message=value["message"],
            lines=tuple(value["lines"]),
        ),
        truth=Truth(
            category=truth["category"],
            accepted=tuple(truth["accepted"]),
            entities=tuple(truth["entities"]),
            lines=frozenset(truth["lines"]),
            severity=truth["severity"],
            cause=truth["cause"],
            program=truth["program"],
            fault=truth["fault"],
            templated=truth["templated"],
            traits=tuple(truth["traits"]),
        ),
    )
