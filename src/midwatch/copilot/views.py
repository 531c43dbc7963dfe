"""What the store tells a page, a terminal and the workflow. Reads only; each runs on a connection of its own."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from midwatch.copilot import codec, memory
from midwatch.copilot.incidents import SEVERITY_RANK
from midwatch.copilot.intake.labels import UNKNOWN_SERVICE
from midwatch.copilot.model import Case, IncidentView, Severity
from midwatch.copilot.tables import diagnoses, events, incidents, logs, outbox

MAX_CASE_LINES = 50_000
MAX_CASE_CHARS = 20_000_000
_MAX_ALERTS_IN_WORDS = 30
_MAX_REASONS = 200
_PERCENTILE_OF_LAST = 1_000


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The strip above the list. Percentiles are of the last 1,000 diagnoses; None where there is none yet.

    `escalated` and `asked_person` count incidents by their latest diagnosis; tokens and dollars are of every diagnosis.
    `p50_s` and `p95_s` are the whole time from the first event to the diagnosis.
    """

    incidents: int = 0
    waiting: int = 0
    diagnosing: int = 0
    diagnosed: int = 0
    resolved: int = 0
    escalated: int = 0
    asked_person: int = 0
    deliveries: int = 0
    events: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    p50_s: float | None = None
    p95_s: float | None = None


_LATEST = sa.and_(diagnoses.c.incident_id == incidents.c.id, diagnoses.c.version == incidents.c.diagnoses)


def list_incidents(
    connection: sa.Connection,
    limit: int,
    before_id: int | None,
    state: Literal["waiting", "diagnosing", "diagnosed"] | None,
) -> list[IncidentView]:
    """The newest incidents first, without reasons and lines."""
    query = (
        sa.select(incidents, diagnoses.c.finding)
        .select_from(incidents.outerjoin(diagnoses, _LATEST))
        .order_by(incidents.c.id.desc())
        .limit(limit)
    )
    if before_id is not None:
        query = query.where(incidents.c.id < before_id)
    if state is not None:
        query = query.where(incidents.c.state == state)
    rows = connection.execute(query).all()
    told = _notifications(connection, [row.id for row in rows])
    return [_view(row, told.get(row.id, (None, ""))) for row in rows]


def incident(connection: sa.Connection, incident_id: int, window_s: float) -> IncidentView | None:
    """One incident whole; its lines are those that were diagnosed or, before that, those there are now."""
    query = (
        sa.select(incidents, diagnoses.c.finding, diagnoses.c.lines)
        .select_from(incidents.outerjoin(diagnoses, _LATEST))
        .where(incidents.c.id == incident_id)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    told = _notifications(connection, [row.id])
    lines = codec.unpack_lines(row.lines) if row.lines is not None else _case_lines(connection, row, window_s)
    view = _view(row, told.get(row.id, (None, "")), tuple(_reasons(connection, incident_id)), lines)
    return replace(view, feedback=memory.latest_feedback(connection, incident_id))


def case(connection: sa.Connection, incident_id: int, window_s: float) -> Case:
    """What triage is given: the alerts in words, and the log in order of time."""
    row = connection.execute(sa.select(incidents).where(incidents.c.id == incident_id)).one()
    told = connection.execute(
        sa.select(events.c.title, events.c.severity, events.c.payload)
        .where(events.c.incident_id == incident_id, events.c.status == "firing")
        .order_by(events.c.id)
        .limit(_MAX_ALERTS_IN_WORDS)
    ).all()
    words = []
    for alert in sorted(told, key=lambda item: SEVERITY_RANK[_severity(item.severity)]):
        message = codec.message_of(alert.payload)
        words.append(f"{alert.title} ({alert.severity})" + (f": {message}" if message else ""))
    return Case(
        service=row.service,
        title=row.title,
        severity=row.severity,
        message="\n".join(words),
        lines=_case_lines(connection, row, window_s),
    )


def totals(connection: sa.Connection) -> Totals:
    """Counts, costs and percentiles over everything in the store."""
    by_state: dict[str, int] = {}
    deliveries = distinct = 0
    grouped = sa.select(
        incidents.c.state, sa.func.count(), sa.func.sum(incidents.c.deliveries), sa.func.sum(incidents.c.events)
    ).group_by(incidents.c.state)
    for state, count, delivered, different in connection.execute(grouped):
        by_state[state] = count
        deliveries += delivered
        distinct += different
    resolved = connection.execute(sa.select(sa.func.count()).where(incidents.c.resolved_at.is_not(None))).scalar_one()
    latest = sa.select(sa.func.count()).select_from(incidents.join(diagnoses, _LATEST))
    tokens, cost_usd = connection.execute(
        sa.select(sa.func.sum(diagnoses.c.tokens), sa.func.sum(diagnoses.c.cost_usd))
    ).one()
    recent = connection.execute(
        sa.select(diagnoses.c.waited_s).order_by(diagnoses.c.id.desc()).limit(_PERCENTILE_OF_LAST)
    ).all()
    p50_s, p95_s = _percentiles([row.waited_s for row in recent])
    return Totals(
        incidents=sum(by_state.values()),
        waiting=by_state.get("waiting", 0),
        diagnosing=by_state.get("diagnosing", 0),
        diagnosed=by_state.get("diagnosed", 0),
        resolved=resolved,
        deliveries=deliveries,
        events=distinct,
        escalated=connection.execute(latest.where(diagnoses.c.escalated)).scalar_one(),
        asked_person=connection.execute(latest.where(diagnoses.c.action == "ask_person")).scalar_one(),
        tokens=tokens or 0,
        cost_usd=cost_usd or 0.0,
        p50_s=p50_s,
        p95_s=p95_s,
    )


def outbox_states(connection: sa.Connection) -> dict[str, int]:
    """How many messages are pending, claimed, sent and failed."""
    rows = connection.execute(sa.select(outbox.c.state, sa.func.count()).group_by(outbox.c.state))
    return {row[0]: row[1] for row in rows}


def next_due(connection: sa.Connection) -> tuple[float | None, float | None]:
    """When the next incident and the next message are due, seconds since the epoch."""
    incident_due = sa.select(sa.func.min(incidents.c.due_at)).where(incidents.c.state == "waiting")
    message_due = sa.select(sa.func.min(outbox.c.due_at)).where(outbox.c.state == "pending")
    return connection.execute(incident_due).scalar(), connection.execute(message_due).scalar()


def _case_lines(connection: sa.Connection, row: sa.Row[Any], window_s: float) -> tuple[str, ...]:
    """The incident's own lines, and what its service logged around it; the newest, where there are too many."""
    mine = logs.c.incident_id == row.id
    wanted: sa.ColumnElement[bool] = mine
    if row.service != UNKNOWN_SERVICE:
        around = sa.and_(logs.c.service == row.service, logs.c.received_at >= row.opened_at - window_s)
        wanted = sa.or_(mine, around)
    query = (
        sa.select(logs.c.id, logs.c.received_at, logs.c.lines)
        .where(wanted)
        .order_by(sa.case((mine, 0), else_=1), logs.c.id.desc())
    )
    kept: list[tuple[float, int, int, str]] = []
    chars = 0
    for batch_id, received_at, data in connection.execute(query):
        for position, (at, text) in reversed(list(enumerate(codec.unpack_log(data)))):
            chars += len(text)
            if len(kept) >= MAX_CASE_LINES or (kept and chars > MAX_CASE_CHARS):
                return _in_order(kept)
            kept.append((received_at if at is None else at, batch_id, position, text))
    return _in_order(kept)


def _in_order(kept: list[tuple[float, int, int, str]]) -> tuple[str, ...]:
    return tuple(text for *_, text in sorted(kept, key=lambda line: line[:3]))


def _reasons(connection: sa.Connection, incident_id: int) -> Iterator[str]:
    """One sentence per attached event; alike ones are counted, and the list is bounded."""
    query = (
        sa.select(events.c.title, events.c.reason, sa.func.count(), sa.func.sum(events.c.deliveries))
        .where(events.c.incident_id == incident_id)
        .group_by(events.c.title, events.c.reason)
        .order_by(sa.func.min(events.c.id))
        .limit(_MAX_REASONS)
    )
    for title, reason, count, deliveries in connection.execute(query):
        sentence = f"{title}: {reason}"
        if count > 1:
            sentence += f" ({count} of these)"
        if deliveries > count:
            sentence += f"; {deliveries - count} repeated deliveries were merged"
        yield sentence


def _notifications(connection: sa.Connection, ids: Sequence[int]) -> dict[int, tuple[float | None, str]]:
    """Per incident: when it was last told, and the error of a message that is not out."""
    told: dict[int, tuple[float | None, str]] = {}
    columns = (outbox.c.incident_id, outbox.c.channel, outbox.c.sent_at, outbox.c.state, outbox.c.last_error)
    query = sa.select(*columns).where(outbox.c.incident_id.in_(ids)).order_by(outbox.c.version)
    for incident_id, channel, sent_at, state, error in connection.execute(query):
        before, _ = told.get(incident_id, (None, ""))
        told[incident_id] = (sent_at or before, f"{channel}: {error}" if error and state != "sent" else "")
    return told


def _view(
    row: sa.Row[Any],
    told: tuple[float | None, str],
    reasons: tuple[str, ...] = (),
    lines: tuple[str, ...] = (),
) -> IncidentView:
    return IncidentView(
        id=row.id,
        state=row.state,
        service=row.service,
        title=row.title,
        severity=row.severity,
        sources=tuple(row.sources.split(",")),
        opened_at=row.opened_at,
        updated_at=row.updated_at,
        resolved_at=row.resolved_at,
        diagnosed_at=row.diagnosed_at,
        notified_at=told[0],
        deliveries=row.deliveries,
        events=row.events,
        attempts=row.attempts,
        last_error=row.last_error or told[1],
        finding=codec.finding_from_json(row.finding) if row.finding is not None else None,
        reasons=reasons,
        lines=lines,
    )


def _percentiles(samples: Sequence[float]) -> tuple[float | None, float | None]:
    if not samples:
        return None, None
    ordered = sorted(samples)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def _severity(word: str) -> Severity:
    found: Severity = next((known for known in SEVERITY_RANK if known == word), "medium")
    return found
