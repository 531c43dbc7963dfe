"""What is kept for the next time: runbooks, people's verdicts on past incidents, and the vectors of both.

Writes run on the store's writing thread, reads on connections of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from midwatch.copilot import codec, taxonomy
from midwatch.copilot.model import Feedback, Finding, Verdict
from midwatch.copilot.runbooks import Runbook, Section
from midwatch.copilot.tables import diagnoses, feedback, incidents, runbook_sections, runbooks, vectors
from midwatch.errors import RequestError

MAX_NOTE_CHARS = 1_000
MAX_PAST_INCIDENTS = 5_000
"""The newest incidents with a verdict that are kept in mind."""
_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Added:
    """What adding runbooks changed. `unchanged` were there, byte for byte."""

    new: int
    changed: int
    unchanged: int


@dataclass(frozen=True, kw_only=True)
class PastIncident:
    """An incident whose cause a person vouched for: by calling the diagnosis right, or by naming the true category."""

    id: int
    title: str
    service: str
    category: str
    note: str
    finding: Finding


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Vectors (float32 bytes) of a model by the hash of their text, to be kept."""

    model: str
    by_digest: dict[str, bytes]


def add_runbooks(connection: sa.Connection, added: Sequence[Runbook], now: float) -> Added:
    """Keep runbooks; one of a name that is known takes its place."""
    rows = connection.execute(sa.select(runbooks.c.id, runbooks.c.name, runbooks.c.digest, runbooks.c.url)).all()
    known = {row.name: row for row in rows}
    counts = {"new": 0, "changed": 0, "unchanged": 0}
    for runbook in added:
        before = known.get(runbook.name)
        if before is not None and (before.digest, before.url) == (runbook.digest, runbook.url):
            counts["unchanged"] += 1
            continue
        counts["new" if before is None else "changed"] += 1
        if before is not None:
            _delete(connection, [before.id])
        row = {"name": runbook.name, "title": runbook.title, "url": runbook.url, "digest": runbook.digest}
        insert = runbooks.insert().values(**row, added_at=now).returning(runbooks.c.id)
        runbook_id = connection.execute(insert).scalar_one()
        connection.execute(
            runbook_sections.insert(),
            [
                {"runbook_id": runbook_id, "position": place, "heading": section.heading, "text": section.text}
                for place, section in enumerate(runbook.sections)
            ],
        )
    return Added(**counts)


def remove_runbooks(connection: sa.Connection, name: str) -> int:
    """Forget the runbook of this name, or those of a folder (`name` without its last slash). Returns how many."""
    inside = sa.or_(runbooks.c.name == name, runbooks.c.name.startswith(f"{name.rstrip('/')}/", autoescape=True))
    ids = [row.id for row in connection.execute(sa.select(runbooks.c.id).where(inside))]
    _delete(connection, ids)
    return len(ids)


def _delete(connection: sa.Connection, ids: Sequence[int]) -> None:
    for begin in range(0, len(ids), _AT_ONCE):
        some = ids[begin : begin + _AT_ONCE]
        connection.execute(runbook_sections.delete().where(runbook_sections.c.runbook_id.in_(some)))
        connection.execute(runbooks.delete().where(runbooks.c.id.in_(some)))


def list_runbooks(connection: sa.Connection) -> list[Runbook]:
    """Every runbook with its sections, by name."""
    sections: dict[int, list[Section]] = {}
    order = (runbook_sections.c.runbook_id, runbook_sections.c.position)
    columns = (runbook_sections.c.runbook_id, runbook_sections.c.heading, runbook_sections.c.text)
    for runbook_id, heading, text in connection.execute(sa.select(*columns).order_by(*order)):
        sections.setdefault(runbook_id, []).append(Section(heading=heading, text=text))
    return [
        Runbook(
            name=row.name,
            title=row.title,
            url=row.url,
            digest=row.digest,
            sections=tuple(sections.get(row.id, ())),
        )
        for row in connection.execute(sa.select(runbooks).order_by(runbooks.c.name))
    ]


def add_feedback(connection: sa.Connection, said: Feedback, now: float) -> Feedback:
    """Keep a person's verdict; returns it with the version of the diagnosis that it judges.

    Raises `RequestError` for an incident that there is not or that has no diagnosis yet, and for a category that is
    none or contradicts the verdict.
    """
    row = connection.execute(
        sa.select(incidents.c.diagnoses, incidents.c.category).where(incidents.c.id == said.incident_id)
    ).first()
    if row is None:
        raise RequestError(f"There is no incident {said.incident_id}.", "The page lists those there are.", status=404)
    if row.diagnoses == 0:
        raise RequestError(
            f"Incident {said.incident_id} has no diagnosis yet.", "Judge it when it has one.", status=409
        )
    category = taxonomy.canonical(said.category) if said.category else ""
    if category and (category not in taxonomy.IDS or category == taxonomy.UNKNOWN):
        raise RequestError(
            f"{said.category[:80]!r} is no category.", f"The categories are {', '.join(taxonomy.CATEGORIES)}."
        )
    if category and (said.verdict == "right") != (category == row.category):
        is_it = "is" if category == row.category else "is not"
        raise RequestError(
            f"The verdict is {said.verdict}, but {category} {is_it} what incident {said.incident_id} was diagnosed as.",
            "Say `right` without a category, or `wrong` with the true one.",
        )
    kept = Feedback(
        incident_id=said.incident_id,
        verdict=said.verdict,
        category=category,
        note=" ".join(said.note.split())[:MAX_NOTE_CHARS],
        version=row.diagnoses,
        at=now,
    )
    connection.execute(
        feedback.insert().values(
            incident_id=kept.incident_id,
            version=kept.version,
            verdict=kept.verdict,
            category=kept.category,
            note=kept.note,
            made_at=now,
        )
    )
    return kept


def latest_feedback(connection: sa.Connection, incident_id: int) -> Feedback | None:
    """The last verdict on an incident."""
    query = sa.select(feedback).where(feedback.c.incident_id == incident_id).order_by(feedback.c.id.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _feedback(row)


def list_feedback(connection: sa.Connection) -> list[Feedback]:
    """The last verdict on each incident that has one, the newest first."""
    last = sa.select(sa.func.max(feedback.c.id)).group_by(feedback.c.incident_id)
    rows = connection.execute(sa.select(feedback).where(feedback.c.id.in_(last)).order_by(feedback.c.id.desc()))
    return [_feedback(row) for row in rows]


def _feedback(row: sa.Row[tuple[object, ...]]) -> Feedback:
    verdict: Verdict = "right" if row.verdict == "right" else "wrong"
    return Feedback(
        incident_id=row.incident_id,
        verdict=verdict,
        category=row.category,
        note=row.note,
        version=row.version,
        at=row.made_at,
    )


def past_incidents(connection: sa.Connection) -> list[PastIncident]:
    """The newest incidents with a known cause. One that was only called wrong teaches nothing and is left out."""
    last = sa.select(sa.func.max(feedback.c.id)).group_by(feedback.c.incident_id)
    query = (
        sa.select(incidents.c.id, incidents.c.title, incidents.c.service, feedback, diagnoses.c.finding)
        .select_from(
            feedback.join(incidents, incidents.c.id == feedback.c.incident_id).join(
                diagnoses,
                sa.and_(diagnoses.c.incident_id == incidents.c.id, diagnoses.c.version == feedback.c.version),
            )
        )
        .where(
            feedback.c.id.in_(last),
            sa.or_(feedback.c.verdict == "right", feedback.c.category != ""),
        )
        .order_by(incidents.c.id.desc())
        .limit(MAX_PAST_INCIDENTS)
    )
    found = []
    for row in connection.execute(query):
        finding = codec.finding_from_json(row.finding)
        category = row.category or finding.diagnosis.category
        if category == taxonomy.UNKNOWN:
            continue
        found.append(
            PastIncident(
                id=row.incident_id,
                title=row.title,
                service=row.service,
                category=category,
                note=row.note,
                finding=finding,
            )
        )
    return found


def revision(connection: sa.Connection) -> tuple[object, ...]:
    """A value that differs once a runbook or a verdict was added, replaced or removed, by whichever process."""
    books = sa.select(sa.func.count(), sa.func.max(runbooks.c.id), sa.func.max(runbooks.c.added_at))
    said = sa.select(sa.func.count(), sa.func.max(feedback.c.id))
    return (*connection.execute(books.select_from(runbooks)).one(), *connection.execute(said).one())


def add_vectors(connection: sa.Connection, found: Vectors) -> None:
    """Keep vectors; those that are there already are left."""
    have = known_vectors(connection, found.model, list(found.by_digest))
    fresh = [
        {"model": found.model, "digest": digest, "vector": vector}
        for digest, vector in found.by_digest.items()
        if digest not in have
    ]
    if fresh:
        connection.execute(vectors.insert(), fresh)


def known_vectors(connection: sa.Connection, model: str, digests: Sequence[str]) -> dict[str, bytes]:
    """The vectors of a model that are kept, by the hash of their text."""
    found: dict[str, bytes] = {}
    for begin in range(0, len(digests), _AT_ONCE):
        some = digests[begin : begin + _AT_ONCE]
        query = sa.select(vectors.c.digest, vectors.c.vector).where(
            vectors.c.model == model, vectors.c.digest.in_(some)
        )
        found.update({row.digest: row.vector for row in connection.execute(query)})
    return found
