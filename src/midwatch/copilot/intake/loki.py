"""Loki's push API with JSON bodies: one event per stream, its lines in the sender's order.

Format: grafana/loki `docs/sources/reference/loki-http-api.md`, "Ingest logs". Snappy-compressed protobuf, which several
agents send unless told otherwise, is refused with the sentence that says how to tell them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from midwatch.copilot.intake.labels import service_of, severity_of
from midwatch.copilot.intake.source import (
    JSON_TYPES,
    LATEST_TIME_S,
    TITLE_CHARS,
    json_object,
    one_line,
    wrong_shape,
)
from midwatch.copilot.model import Event, LogLine
from midwatch.errors import RequestError

_EXAMPLE = '{"streams": [{"stream": {"app": "nginx"}, "values": [["1700000000000000000", "a line"]]}]}'
_LEVEL_KEYS = ("level", "detected_level", "severity")


class Loki:
    """`POST /loki/api/v1/push`."""

    name = "loki"
    path = "/loki/api/v1/push"
    accepted_status = 204

    def check_media_type(self, media_type: str) -> None:
        """Only JSON; protobuf is refused with the way out."""
        if media_type in JSON_TYPES:
            return
        raise RequestError(
            f"This hook reads Loki's JSON, not {one_line(media_type, 80)}.",
            "Set the agent to JSON: Fluent Bit's loki output sends it already; Vector's loki sink does with "
            'compression = "gzip" or "none"; Promtail and Alloy speak protobuf only, so put one of those between.',
            status=415,
        )

    def parse(self, body: bytes, query: Mapping[str, str]) -> list[Event]:
        """One event per stream that has lines."""
        streams = json_object(body, example=_EXAMPLE).get("streams")
        if not isinstance(streams, list):
            raise wrong_shape("`streams` must be a list.", f"Send a body such as {_EXAMPLE}.")
        events = [event for number, item in enumerate(streams) if (event := _event(item, number)) is not None]
        if not events:
            raise wrong_shape("The push holds no line.", f"Send at least one line, such as {_EXAMPLE}.")
        return events


def _event(item: Any, number: int) -> Event | None:
    where = f"streams[{number}]"
    if (
        not isinstance(item, dict)
        or not isinstance(item.get("stream"), dict)
        or not isinstance(item.get("values"), list)
    ):
        raise wrong_shape(f"{where} must have `stream`, an object, and `values`, a list.", f"Send {_EXAMPLE}.")
    labels = {key: value if isinstance(value, str) else str(value)[:1000] for key, value in item["stream"].items()}
    lines: list[LogLine] = []
    level = next((labels[key] for key in _LEVEL_KEYS if key in labels), "")
    for position, value in enumerate(item["values"]):
        lines += _lines(value, f"{where}.values[{position}]")
        if len(value) > 2 and isinstance(value[2], dict):
            level = _worse(level, value[2])
    if not lines:
        return None
    if level:
        labels["level"] = level
    service = service_of(labels)
    digest = hashlib.sha256(orjson.dumps([labels, item["values"]], option=orjson.OPT_SORT_KEYS)).hexdigest()
    return Event(
        source=Loki.name,
        fingerprint=digest[:32],
        status="logs",
        service=service,
        title=one_line(f"Log of {service}", TITLE_CHARS),
        severity=severity_of(level),
        labels=labels,
        lines=tuple(lines),
    )


def _lines(value: Any, where: str) -> list[LogLine]:
    """One entry; a stack trace sent as one entry becomes the lines it is made of."""
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[1], str):
        raise wrong_shape(f"{where} must be a pair of time and line, both strings.", f"Send {_EXAMPLE}.")
    try:
        at: float | None = int(value[0]) / 1e9
    except (ValueError, TypeError, OverflowError):
        raise wrong_shape(
            f"{where} starts with a time that is no number of nanoseconds.",
            'Send it as a string: "1700000000000000000".',
        ) from None
    if at is None or not 0 < at < LATEST_TIME_S:
        at = None
    return [LogLine(text=text.removesuffix("\r"), at=at) for text in value[1].split("\n") if text.strip()]


def _worse(level: str, metadata: dict[str, Any]) -> str:
    """The worse of the level so far and the one that a line's structured metadata names."""
    named = next((str(metadata[key]) for key in _LEVEL_KEYS if key in metadata), "")
    bad = {"critical", "high"}
    return named if severity_of(named, "info") in bad and severity_of(level, "info") not in bad else level
