"""The transaction behind a 202: load what a batch needs, place it by the rules, write what changed.

A batch may hold the deliveries of many requests; it costs the same few statements as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from midwatch.copilot import codec, tables
from midwatch.copilot.incidents import (
    Alert,
    Arrival,
    Board,
    Incident,
    Placement,
    Rules,
    alert_key,
    arrival,
    dedup_key,
    episode_of,
)
from midwatch.copilot.model import Event

_CHUNK = 500  # parameters of one IN list; SQLite and PostgreSQL both take far more


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of one delivery: events that were new, duplicates, incidents opened, and those they belong to."""

    events: int
    duplicates: int
    opened: int
    incidents: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A delivery with its costly parts done (lines looked at, compressed) before the writer is asked."""

    arrivals: tuple[Arrival, ...]
    payloads: tuple[str, ...]
    packed: tuple[bytes | None, ...]


def prepare(events: Sequence[Event]) -> Prepared:
    """Do the work that needs no transaction; safe on any thread."""
    return Prepared(
        tuple(arrival(event) for event in events),
        tuple(codec.event_payload(event) for event in events),
        tuple(codec.pack_log(event.lines) if event.lines else None for event in events),
    )


def place(connection: sa.Connection, batch: Sequence[Prepared], rules: Rules, now: float) -> list[Receipt]:
    """Place every event of every delivery, in one transaction; one receipt per delivery."""
    arrivals = [item for prepared in batch for item in prepared.arrivals]
    board = _load(connection, [item.event for item in arrivals], rules, now)
    stored = frozenset(board.alerts)
    placements = board.place_all(arrivals, now)
    new_ids = _write_incidents(connection, board)
    _write_alerts(connection, board, stored, new_ids)
    payloads = [text for prepared in batch for text in prepared.payloads]
    packed = [data for prepared in batch for data in prepared.packed]
    _write_events(connection, placements, payloads, new_ids, now)
    _write_logs(connection, placements, packed, new_ids, now)
    return list(_receipts(batch, placements, new_ids))


def _load(connection: sa.Connection, events: Sequence[Event], rules: Rules, now: float) -> Board:
    board = Board(rules)
    named = {alert_key(event) for event in events if event.status != "logs"}
    for row in _rows_in(connection, sa.select(tables.alerts), tables.alerts.c.key, named):
        board.alerts[row.key] = Alert(**row._mapping)
    keys: set[str] = set()
    for event in events:
        known = board.alerts.get(alert_key(event))
        episode = episode_of(event)
        if episode is None:
            episode = known.episode if known is not None else ""
        keys.add(dedup_key(event, episode))
        if event.status == "firing":
            keys.add(f"{event.source}|resolved|{episode}|{event.fingerprint}")
    for table in (tables.logs, tables.events):
        query = sa.select(table.c.dedup_key, table.c.incident_id)
        for row in _rows_in(connection, query, table.c.dedup_key, keys):
            board.seen[row.dedup_key] = row.incident_id
    wanted = {alert.incident_id for alert in board.alerts.values()}
    wanted |= {incident_id for incident_id in board.seen.values() if incident_id is not None}
    table = tables.incidents
    near = sa.select(table).where(table.c.active_at >= now - rules.group_window_s)
    services = {event.service for event in events}
    found = [*_rows_in(connection, sa.select(table), table.c.id, wanted)]
    found += _rows_in(connection, near, table.c.service, services)
    board.incidents = {row.id: _incident(row) for row in found}
    return board


def _rows_in(
    connection: sa.Connection, query: sa.Select[Any], column: sa.ColumnElement[Any], values: Iterable[Any]
) -> Iterator[sa.Row[Any]]:
    ordered = sorted(values)
    for start in range(0, len(ordered), _CHUNK):
        yield from connection.execute(query.where(column.in_(ordered[start : start + _CHUNK])))


def _incident(row: sa.Row[Any]) -> Incident:
    stored = row._mapping
    fields = {name: stored[name] for name in Incident.__dataclass_fields__ if name not in {"sources", "changed"}}
    return Incident(**fields, sources=stored["sources"].split(",") if stored["sources"] else [])


def _incident_values(incident: Incident) -> dict[str, Any]:
    skipped = {"id", "sources", "changed"}
    values = {name: getattr(incident, name) for name in Incident.__dataclass_fields__ if name not in skipped}
    return {**values, "sources": ",".join(incident.sources)}


_SET_INCIDENT = (
    tables.incidents.update()
    .where(tables.incidents.c.id == sa.bindparam("row_id"))
    .values(
        {
            name: sa.bindparam(f"new_{name}")
            for name in (*(set(Incident.__dataclass_fields__) - {"id", "sources", "changed"}), "sources")
        }
    )
)
_SET_ALERT = (
    tables.alerts.update()
    .where(tables.alerts.c.key == sa.bindparam("row_key"))
    .values(
        {name: sa.bindparam(f"new_{name}") for name in ("incident_id", "episode", "starts_at", "firing", "seen_at")}
    )
)
_COUNT_AGAIN = (
    tables.events.update()
    .where(tables.events.c.dedup_key == sa.bindparam("row_key"))
    .values(deliveries=tables.events.c.deliveries + sa.bindparam("more"), seen_at=sa.bindparam("now"))
)


def _write_incidents(connection: sa.Connection, board: Board) -> dict[int, int]:
    """Insert and update incidents; the answer maps the board's own ids to the store's."""
    new = [incident for incident in board.incidents.values() if incident.id < 0]
    ids = {incident.id: incident.id for incident in board.incidents.values() if incident.id > 0}
    if new:
        insert = tables.incidents.insert().returning(tables.incidents.c.id, sort_by_parameter_order=True)
        stored = connection.execute(insert, [_incident_values(incident) for incident in new]).scalars()
        ids |= {incident.id: row_id for incident, row_id in zip(new, stored, strict=True)}
    changed = [incident for incident in board.incidents.values() if incident.id > 0 and incident.changed]
    if changed:
        rows = [
            {"row_id": item.id, **{f"new_{name}": value for name, value in _incident_values(item).items()}}
            for item in changed
        ]
        connection.execute(_SET_INCIDENT, rows)
    return ids


def _write_alerts(connection: sa.Connection, board: Board, stored: frozenset[str], ids: dict[int, int]) -> None:
    new: list[dict[str, Any]] = []
    old: list[dict[str, Any]] = []
    for alert in board.alerts.values():
        if not alert.changed:
            continue
        values = {
            "incident_id": ids[alert.incident_id],
            "episode": alert.episode,
            "starts_at": alert.starts_at,
            "firing": alert.firing,
            "seen_at": alert.seen_at,
        }
        if alert.key in stored:
            old.append({"row_key": alert.key, **{f"new_{name}": value for name, value in values.items()}})
        else:
            new.append({"key": alert.key, **values})
    if new:
        connection.execute(tables.alerts.insert(), new)
    if old:
        connection.execute(_SET_ALERT, old)


def _write_events(
    connection: sa.Connection, placements: Sequence[Placement], payloads: Sequence[str], ids: dict[int, int], now: float
) -> None:
    again = Counter(item.dedup_key for item in placements if item.duplicate)
    rows: list[dict[str, Any]] = []
    in_order = sorted(zip(placements, payloads, strict=True), key=lambda pair: pair[0].arrival.rank)
    for item, payload in in_order:  # the one that opened an incident comes first in it
        event = item.arrival.event
        if item.duplicate or (event.status == "logs" and item.incident_id is None):
            continue
        incident_id = None if item.incident_id is None else ids[item.incident_id]
        rows.append(
            {
                "incident_id": incident_id,
                "dedup_key": item.dedup_key,
                "source": event.source,
                "fingerprint": event.fingerprint,
                "status": event.status,
                "service": event.service,
                "title": event.title,
                "severity": event.severity,
                "received_at": now,
                "seen_at": now,
                "deliveries": 1,
                "reason": item.reason.replace("{incident}", str(incident_id)),
                "payload": payload,
            }
        )
    if rows:
        connection.execute(tables.events.insert(), rows)
    if again:
        connection.execute(_COUNT_AGAIN, [{"row_key": key, "more": n, "now": now} for key, n in again.items()])


def _write_logs(
    connection: sa.Connection,
    placements: Sequence[Placement],
    packed: Sequence[bytes | None],
    ids: dict[int, int],
    now: float,
) -> None:
    rows = [
        {
            "incident_id": None if item.incident_id is None else ids[item.incident_id],
            "dedup_key": item.dedup_key,
            "service": item.arrival.event.service,
            "received_at": now,
            "line_count": len(item.arrival.event.lines),
            "lines": data,
        }
        for item, data in zip(placements, packed, strict=True)
        if data is not None and not item.duplicate
    ]
    if rows:
        connection.execute(tables.logs.insert(), rows)


def _receipts(batch: Sequence[Prepared], placements: Sequence[Placement], ids: dict[int, int]) -> Iterator[Receipt]:
    rest = iter(placements)
    opened: set[int] = set()
    for prepared in batch:
        mine = [next(rest) for _ in prepared.arrivals]
        duplicates = sum(item.duplicate for item in mine)
        found = sorted({ids[item.incident_id] for item in mine if item.incident_id is not None})
        fresh = {item.incident_id for item in mine if item.incident_id is not None and item.incident_id < 0} - opened
        opened |= fresh
        yield Receipt(
            events=len(mine) - duplicates, duplicates=duplicates, opened=len(fresh), incidents=tuple(found[:100])
        )
