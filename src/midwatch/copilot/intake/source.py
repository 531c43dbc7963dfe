"""What a source is, and what every parser needs: bounded text, JSON of the right shape, times that may be nonsense."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import orjson

from midwatch.copilot.model import Event
from midwatch.errors import RequestError

TITLE_CHARS = 200
NAME_CHARS = 120
MESSAGE_CHARS = 4000
LATEST_TIME_S = 4_102_444_800.0  # the year 2100: a later time is a wrong unit, not a time
JSON_TYPES = frozenset(
    {"", "application/json", "text/json", "application/octet-stream", "application/x-www-form-urlencoded"}
)
"""Media types that a JSON hook reads: JSON, and what clients send when nobody told them (curl -d says "form")."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_SPACE = re.compile(r"\s+")


class Source(Protocol):
    """One hook: where it listens, which status says "it is on disk", and how a body becomes events."""

    @property
    def name(self) -> str:
        """The name in settings (`sources.NAME`), in metrics and in `Event.source`."""

    @property
    def path(self) -> str:
        """The path of the hook."""

    @property
    def accepted_status(self) -> int:
        """202, or what the sender's own protocol expects instead (204 for Loki)."""

    def check_media_type(self, media_type: str) -> None:
        """Raise `RequestError` 415 for a body that we do not read. `media_type` is lower case, without parameters."""

    def parse(self, body: bytes, query: Mapping[str, str]) -> list[Event]:
        """Turn the verified body into at least one event. Raises `RequestError` 400 (not the format) or 422 (shape)."""


def wrong_shape(what: str, next_step: str) -> RequestError:
    """The 422 that names the field that is wrong."""
    return RequestError(what, next_step, status=422)


def json_object(body: bytes, *, example: str) -> dict[str, Any]:
    """The body as a JSON object. Raises `RequestError` 400 where it is not JSON, 422 where it is no object."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON: {str(error)[:120]}.", f"Send a body such as {example}.") from None
    if not isinstance(document, dict):
        raise wrong_shape(f"The body is a JSON {type(document).__name__}, not an object.", f"Send {example}.")
    return document


def one_line(text: str, limit: int) -> str:
    """Foreign text as one bounded line without control or direction-changing characters."""
    flat = _SPACE.sub(" ", _CONTROL.sub(" ", text[: limit * 4])).strip()
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def paragraph(text: str, limit: int = MESSAGE_CHARS) -> str:
    """Foreign text of several lines, bounded, without control characters."""
    clean = _CONTROL.sub("", text[: limit * 2]).strip()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def parse_time_s(value: object) -> float | None:
    """An RFC 3339 time as seconds since the epoch; None for a missing, zero or unreadable one.

    A wrong clock in a sender must not cost the alert, so nothing is raised.
    """
    if not isinstance(value, str) or not value or value.startswith("0001-"):
        return None
    try:
        parsed = datetime.fromisoformat(value[:64])
        seconds = parsed.timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return seconds if 0 < seconds < LATEST_TIME_S else None
