"""A recording: what programs printed while one of them was broken, and which of these lines show why."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from midwatch.errors import FoundryError

Kind = Literal["fault", "healthy", "false_alarm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedLine:
    """One line as a program printed it. `at` is seconds since the recording began, `source` who printed it.

    `truth` says that this line shows the root cause (not a symptom of it).
    """

    at: float
    source: str
    text: str
    truth: bool = False


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One run of one fault, or of healthy programs.

    `program` is the family that failed (`postgresql`, `node`, `kubernetes`); whole families are held out of training.
    `accepted` are further categories that are right too. `entity` is the name, as printed, of what is broken; `names`
    maps names that occur in the lines to what they name (`service`, `host`, `database`, `user`, `queue`, `domain`,
    `volume`, `process`), so that they can be renamed. `templated` is true where the words were written by hand
    because the real thing cannot run here. Times are seconds since the beginning; None where nothing was mended.
    """

    id: str
    program: str
    fault: str
    kind: Kind
    category: str
    severity: str = "high"
    entity: str = ""
    cause: str = ""
    accepted: tuple[str, ...] = ()
    templated: bool = False
    alert_title: str = ""
    alert_message: str = ""
    names: dict[str, str] = field(default_factory=dict)
    broke_at: float | None = None
    mended_at: float | None = None
    lines: tuple[RecordedLine, ...] = ()


def write(path: Path, recordings: Iterable[Recording]) -> int:
    """Write recordings as gzipped JSON lines, the same bytes for the same recordings. Returns how many."""
    count = 0
    with path.open("wb") as stream, gzip.GzipFile(fileobj=stream, mode="wb", filename="", mtime=0) as packed:
        for recording in recordings:
            packed.write(orjson.dumps(_as_object(recording)) + b"\n")
            count += 1
    return count


def read(path: Path) -> Iterator[Recording]:
    """Recordings of a file. Raises `FoundryError` for a file that holds something else."""
    try:
        with gzip.open(path, "rb") as stream:
            for line in stream:
                value = orjson.loads(line)
                lines = tuple(
                    RecordedLine(at=at, source=who, text=text, truth=bool(truth))
                    for at, who, text, truth in value.pop("lines")
                )
                yield Recording(**{**value, "accepted": tuple(value["accepted"]), "lines": lines})
    except (OSError, EOFError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise FoundryError(f"{path} holds no recordings ({error}).", "midwatch foundry record makes them.") from error


def _as_object(recording: Recording) -> dict[str, Any]:
    value = asdict(recording)
    value["lines"] = [[round(line.at, 3), line.source, line.text, int(line.truth)] for line in recording.lines]
    return value
