"""The transactions of the workflow: take an incident, put back its diagnosis, take a message, put back its fate.

Each is one commit. A row that is taken says so in the store, so that a restart knows what was under way.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from midwatch.copilot import codec
from midwatch.copilot.incidents import MAX_DIAGNOSES, SEVERITY_RANK
from midwatch.copilot.model import Finding, Severity
from midwatch.copilot.tables import diagnoses, incidents, logs, outbox


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An incident taken for diagnosis. `version` is the number that its diagnosis will have; attempts start at 1."""

    incident_id: int
    version: int
    attempts: int
    severity: Severity
    waiting_since: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finding to store, with the log that was read and the messages (channel, body) that tell of it."""

    claim: Claim
    finding: Finding
    lines: bytes
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A diagnosis that could not be made; the incident waits `retry_in_s` seconds."""

    claim: Claim
    error: str
    retry_in_s: float


@dataclass(frozen=True, kw_only=True)
class Message:
    """A row of the outbox taken for sending. `delivery_id` is its `Idempotency-Key`."""

    id: int
    delivery_id: str
    incident_id: int
    channel: str
    body: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The fate of a message: sent (no error), to be tried again, or given up (no `retry_in_s`)."""

    id: int
    error: str = ""
    retry_in_s: float | None = None


def _due_longest(connection: sa.Connection, table: sa.Table, state: str, now: float) -> sa.Row[Any] | None:
    """The row in `state` that has been due longest, locked against other workers where the database can."""
    due = (
        sa.select(table)
        .where(table.c.state == state, table.c.due_at <= now)
        .order_by(table.c.due_at, table.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(due).first()


def claim_due(connection: sa.Connection, now: float) -> Claim | None:
    """Take the incident that has been due longest."""
    row = _due_longest(connection, incidents, "waiting", now)
    if row is None:
        return None
    connection.execute(
        incidents.update()
        .where(incidents.c.id == row.id)
        .values(state="diagnosing", attempts=row.attempts + 1, news=0, updated_at=now)
    )
    return Claim(
        incident_id=row.id,
        version=row.diagnoses + 1,
        attempts=row.attempts + 1,
        severity=row.severity,
        waiting_since=row.waiting_since,
    )


def store_outcome(connection: sa.Connection, outcome: Outcome, now: float) -> None:
    """Diagnosis, state and messages in one transaction.

    A message is written for the first diagnosis, and for a later one only if it names another category. The incident
    waits again, a bounded number of times, if it is unknown and more log came in, or worse trouble joined it meanwhile.
    """
    claim, diagnosis = outcome.claim, outcome.finding.diagnosis
    row = connection.execute(sa.select(incidents).where(incidents.c.id == claim.incident_id)).one()
    connection.execute(
        diagnoses.insert().values(
            incident_id=claim.incident_id,
            version=claim.version,
            made_at=now,
            waited_s=now - claim.waiting_since,
            category=diagnosis.category,
            action=diagnosis.action,
            escalated=diagnosis.escalated,
            tokens=diagnosis.prompt_tokens + diagnosis.completion_tokens,
            cost_usd=diagnosis.cost_usd,
            latency_ms=diagnosis.latency_ms,
            finding=codec.finding_to_json(outcome.finding),
            lines=outcome.lines,
        )
    )
    worse = SEVERITY_RANK[row.severity] < SEVERITY_RANK[claim.severity]
    again = claim.version < MAX_DIAGNOSES and (worse or (diagnosis.category == "unknown" and row.news > 0))
    connection.execute(
        incidents.update()
        .where(incidents.c.id == claim.incident_id)
        .values(
            state="waiting" if again else "diagnosed",
            category=diagnosis.category,
            diagnosed_at=now,
            updated_at=now,
            diagnoses=claim.version,
            last_error="",
            attempts=0 if again else claim.attempts,
            waiting_since=now,
            due_at=now,
        )
    )
    if claim.version > 1 and row.category == diagnosis.category:
        return
    for channel, body in outcome.messages:
        connection.execute(
            outbox.insert().values(
                delivery_id=uuid.uuid4().hex,
                incident_id=claim.incident_id,
                channel=channel,
                version=claim.version,
                state="pending",
                body=body,
                due_at=now,
                created_at=now,
            )
        )


def store_failure(connection: sa.Connection, failure: Failure, now: float) -> None:
    """The incident waits again, with the reason beside it."""
    connection.execute(
        incidents.update()
        .where(incidents.c.id == failure.claim.incident_id)
        .values(state="waiting", due_at=now + failure.retry_in_s, last_error=failure.error[:500], updated_at=now)
    )


def claim_message(connection: sa.Connection, now: float) -> Message | None:
    """Take the message that has been due longest."""
    row = _due_longest(connection, outbox, "pending", now)
    if row is None:
        return None
    connection.execute(outbox.update().where(outbox.c.id == row.id).values(state="claimed", attempts=row.attempts + 1))
    return Message(
        id=row.id,
        delivery_id=row.delivery_id,
        incident_id=row.incident_id,
        channel=row.channel,
        body=row.body,
        attempts=row.attempts + 1,
    )


def store_sent(connection: sa.Connection, sent: Sent, now: float) -> None:
    """Record what became of a message."""
    state = "sent" if not sent.error else ("failed" if sent.retry_in_s is None else "pending")
    connection.execute(
        outbox.update()
        .where(outbox.c.id == sent.id)
        .values(
            state=state,
            last_error=sent.error[:500],
            due_at=now + (sent.retry_in_s or 0.0),
            sent_at=now if state == "sent" else None,
        )
    )


def recover(connection: sa.Connection, now: float, backoff_s: Sequence[float]) -> int:
    """After a restart: what was under way waits again. The answer counts the incidents.

    The first restart goes on at once. An incident that was under way at several deaths in a row may be their cause, so
    it waits `backoff_s[attempts - 2]` and lets the others go first.
    """
    rows = connection.execute(sa.select(incidents).where(incidents.c.state == "diagnosing")).all()
    for row in rows:
        wait_s = 0.0 if row.attempts < 2 else backoff_s[min(row.attempts - 2, len(backoff_s) - 1)]
        connection.execute(
            incidents.update()
            .where(incidents.c.id == row.id)
            .values(state="waiting", due_at=now + wait_s, updated_at=now)
        )
    connection.execute(outbox.update().where(outbox.c.state == "claimed").values(state="pending", due_at=now))
    return len(rows)


def prune_logs(connection: sa.Connection, before: float) -> int:
    """Forget log lines received before a time, but none that a waiting incident still has to be diagnosed from."""
    undiagnosed = sa.select(incidents.c.id).where(incidents.c.state != "diagnosed")
    done = logs.delete().where(
        logs.c.received_at < before, sa.or_(logs.c.incident_id.is_(None), logs.c.incident_id.not_in(undiagnosed))
    )
    return connection.execute(done).rowcount
