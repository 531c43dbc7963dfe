"""Alertmanager's webhook, version 4 (and the older 3): one event per alert.

Format: prometheus/alertmanager `notify/webhook` and `template.Data`. It carries no signature of its own; set a bearer
token in its `http_config.authorization`. It sends again every `repeat_interval` and on every 5xx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from midwatch.copilot.intake.labels import fingerprint_of, service_of, severity_of
from midwatch.copilot.intake.source import (
    JSON_TYPES,
    NAME_CHARS,
    TITLE_CHARS,
    json_object,
    one_line,
    paragraph,
    parse_time_s,
    wrong_shape,
)
from midwatch.copilot.model import Event
from midwatch.errors import RequestError

_EXAMPLE = '{"version": "4", "alerts": [{"status": "firing", "labels": {"alertname": "HighErrorRate"}}]}'
_LINK_CHARS = 2000


class Alertmanager:
    """`POST /hooks/alertmanager`."""

    name = "alertmanager"
    path = "/hooks/alertmanager"
    accepted_status = 202

    def check_media_type(self, media_type: str) -> None:
        """Only JSON; a client that names no real type is taken to send it."""
        if media_type not in JSON_TYPES:
            raise RequestError(
                f"This hook reads application/json, not {one_line(media_type, 80)}.",
                "Point an Alertmanager webhook_config at it, or send Content-Type: application/json.",
                status=415,
            )

    def parse(self, body: bytes, query: Mapping[str, str]) -> list[Event]:
        """One event per alert of the body."""
        document = json_object(body, example=_EXAMPLE)
        alerts = document.get("alerts")
        if not isinstance(alerts, list) or not alerts:
            raise wrong_shape("`alerts` must be a list with at least one alert.", f"Send a body such as {_EXAMPLE}.")
        external_url = document.get("externalURL")
        return [_event(alert, number, external_url) for number, alert in enumerate(alerts)]


def _event(alert: Any, number: int, external_url: object) -> Event:
    where = f"alerts[{number}]"
    if not isinstance(alert, dict):
        raise wrong_shape(f"{where} must be an object.", f"Send a body such as {_EXAMPLE}.")
    labels = _strings(alert.get("labels"), f"{where}.labels")
    annotations = _strings(alert.get("annotations", {}), f"{where}.annotations")
    status = alert.get("status", "firing")
    if status not in ("firing", "resolved"):
        raise wrong_shape(f"{where}.status must be `firing` or `resolved`.", f"Send a body such as {_EXAMPLE}.")
    given = alert.get("fingerprint")
    fingerprint = given if isinstance(given, str) and 0 < len(given) <= NAME_CHARS else fingerprint_of(labels)
    name = labels.get("alertname", "")
    title = annotations.get("summary") or annotations.get("title") or name or "An alert without a name"
    severity = labels.get("severity") or labels.get("priority") or annotations.get("severity", "")
    links = (alert.get("generatorURL"), annotations.get("runbook_url"), annotations.get("dashboard_url"), external_url)
    return Event(
        source=Alertmanager.name,
        fingerprint=one_line(fingerprint, NAME_CHARS),
        status="resolved" if status == "resolved" else "firing",
        service=service_of(labels),
        title=one_line(f"{name}: {title}" if name and name not in title else title, TITLE_CHARS),
        severity=severity_of(severity),
        message=paragraph(annotations.get("description") or annotations.get("message", "")),
        labels=labels,
        links=tuple(link for link in links if isinstance(link, str) and _is_link(link)),
        starts_at=parse_time_s(alert.get("startsAt")),
        ends_at=parse_time_s(alert.get("endsAt")) if status == "resolved" else None,
        raw=orjson.dumps(alert).decode(),
    )


def _strings(value: Any, where: str) -> dict[str, str]:
    """A flat map of text. Numbers and booleans are written out; a nested value has no place in a label set."""
    if value is None or not isinstance(value, dict):
        raise wrong_shape(f"{where} must be an object of strings.", f"Send a body such as {_EXAMPLE}.")
    plain: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, str):
            plain[key] = item
        elif item is None or isinstance(item, bool | int | float):
            plain[key] = "" if item is None else str(item)
        else:
            raise wrong_shape(f"{where}.{one_line(key, 60)} must be a string.", f"Send a body such as {_EXAMPLE}.")
    return plain


def _is_link(link: str) -> bool:
    return link.startswith(("http://", "https://")) and len(link) <= _LINK_CHARS
