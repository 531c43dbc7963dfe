"""Values of the copilot as text and bytes for the store, and back. The one place that knows the stored form."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from midwatch.copilot.model import Event, Finding, LogLine

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_LEVEL = 1  # logs shrink about tenfold already; a higher level costs more time than the disk is worth


@functools.cache
def _finding_adapter() -> TypeAdapter[Finding]:
    from pydantic import TypeAdapter

    return TypeAdapter(Finding)


def finding_to_json(finding: Finding) -> str:
    """A finding as JSON text."""
    return orjson.dumps(finding).decode()


def finding_from_json(text: str) -> Finding:
    """The finding again, with its types checked."""
    return _finding_adapter().validate_json(text)


def event_payload(event: Event) -> str:
    """What an event says beyond its columns, as JSON text. Its lines are stored apart."""
    return orjson.dumps(
        {
            "message": event.message,
            "labels": event.labels,
            "links": event.links,
            "external_id": event.external_id,
            "starts_at": event.starts_at,
            "ends_at": event.ends_at,
            "raw": event.raw,
        }
    ).decode()


def message_of(payload: str) -> str:
    """The message of a stored event."""
    return str(orjson.loads(payload)["message"])


def pack_log(lines: Sequence[LogLine]) -> bytes:
    """Lines with their times, compressed."""
    return zlib.compress(orjson.dumps([(line.at, line.text) for line in lines]), _LEVEL)


def unpack_log(data: bytes) -> list[tuple[float | None, str]]:
    """(time, text) of each line."""
    return [(at, text) for at, text in orjson.loads(zlib.decompress(data))]


def pack_lines(lines: Sequence[str]) -> bytes:
    """A log as it was read, compressed."""
    return zlib.compress(orjson.dumps(list(lines)), _LEVEL)


def unpack_lines(data: bytes) -> tuple[str, ...]:
    """The log again; line n is item n - 1."""
    return tuple(orjson.loads(zlib.decompress(data)))
