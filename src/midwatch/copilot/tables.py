"""The tables, and the one place that knows which database lies under them.

incidents ← events (one row per distinct delivery) ← alerts (the latest of each named thing)
incidents ← logs (one compressed row per push) · diagnoses (one row per version, with the log that was read) · outbox
incidents ← feedback (what people said of a diagnosis; the latest counts) · runbooks ← runbook_sections
vectors (of any text, by its hash: computed once)
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url

from midwatch.errors import MidwatchError, SettingsError

SCHEMA_VERSION = 1
"""Rises where an older Midwatch could no longer use the tables; one that only adds tables leaves it."""
_PAGE_BYTES = 4096
_BUSY_MS = 5_000

metadata = sa.MetaData()
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _id() -> sa.Column[Any]:
    return sa.Column("id", _ID, primary_key=True, autoincrement=True)


def _incident(*, nullable: bool) -> sa.Column[Any]:
    return sa.Column("incident_id", _ID, sa.ForeignKey("incidents.id"), nullable=nullable)


def _text(name: str, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, nullable=False, server_default=default)


def _time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Double, nullable=nullable)


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

incidents = sa.Table(
    "incidents",
    metadata,
    _id(),
    _text("state"),
    _text("service"),
    _text("title"),
    _text("severity"),
    _text("category", ""),
    _text("sources"),
    _time("opened_at"),
    _time("active_at"),
    _time("updated_at"),
    _time("resolved_at", nullable=True),
    _time("diagnosed_at", nullable=True),
    _time("waiting_since"),
    _time("due_at"),
    _count("firing"),
    _count("deliveries"),
    _count("events"),
    _count("attempts"),
    _count("diagnoses"),
    _count("news"),
    _text("last_error", ""),
    sa.Index("incidents_by_due", "state", "due_at"),
    sa.Index("incidents_by_service", "service", "active_at"),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    _incident(nullable=False),
    _text("episode"),
    _time("starts_at", nullable=True),
    sa.Column("firing", sa.Boolean, nullable=False),
    _time("seen_at"),
)

events = sa.Table(
    "events",
    metadata,
    _id(),
    _incident(nullable=True),
    sa.Column("dedup_key", sa.Text, nullable=False, unique=True),
    _text("source"),
    _text("fingerprint"),
    _text("status"),
    _text("service"),
    _text("title"),
    _text("severity"),
    _time("received_at"),
    _time("seen_at"),
    _count("deliveries"),
    _text("reason"),
    _text("payload"),
    sa.Index("events_by_incident", "incident_id"),
)

logs = sa.Table(
    "logs",
    metadata,
    _id(),
    _incident(nullable=True),
    sa.Column("dedup_key", sa.Text, nullable=False, unique=True),
    _text("service"),
    _time("received_at"),
    _count("line_count"),
    sa.Column("lines", sa.LargeBinary, nullable=False),
    sa.Index("logs_by_service", "service", "received_at"),
    sa.Index("logs_by_incident", "incident_id"),
    sa.Index("logs_by_time", "received_at"),
)

diagnoses = sa.Table(
    "diagnoses",
    metadata,
    _id(),
    _incident(nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    _time("made_at"),
    _time("waited_s"),
    _text("category"),
    _text("action"),
    sa.Column("escalated", sa.Boolean, nullable=False),
    _count("tokens"),
    sa.Column("cost_usd", sa.Double, nullable=False),
    sa.Column("latency_ms", sa.Double, nullable=False),
    _text("finding"),
    sa.Column("lines", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("incident_id", "version"),
)

outbox = sa.Table(
    "outbox",
    metadata,
    _id(),
    sa.Column("delivery_id", sa.Text, nullable=False, unique=True),
    _incident(nullable=False),
    _text("channel"),
    sa.Column("version", sa.Integer, nullable=False),
    _text("state"),
    _text("body"),
    _count("attempts"),
    _time("due_at"),
    _time("created_at"),
    _time("sent_at", nullable=True),
    _text("last_error", ""),
    sa.UniqueConstraint("incident_id", "channel", "version"),
    sa.Index("outbox_by_due", "state", "due_at"),
)

feedback = sa.Table(
    "feedback",
    metadata,
    _id(),
    _incident(nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    _text("verdict"),
    _text("category", ""),
    _text("note", ""),
    _time("made_at"),
    sa.Index("feedback_by_incident", "incident_id"),
)

runbooks = sa.Table(
    "runbooks",
    metadata,
    _id(),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    _text("title"),
    _text("url", ""),
    _text("digest"),
    _time("added_at"),
)

runbook_sections = sa.Table(
    "runbook_sections",
    metadata,
    _id(),
    sa.Column("runbook_id", _ID, sa.ForeignKey("runbooks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    _text("heading", ""),
    _text("text"),
    sa.UniqueConstraint("runbook_id", "position"),
)

vectors = sa.Table(
    "vectors",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)


class StoreError(MidwatchError):
    """The store cannot write now: the disk is full, gone or busy. Nothing was accepted; send it again later."""


def connect(url_text: str, *, max_bytes: int | None = None) -> tuple[Engine, Engine]:
    """The writing engine (its transactions start at once) and the reading one, with the tables made.

    `max_bytes` bounds the size of an SQLite file. Raises `SettingsError` for a URL that we cannot use, a folder that we
    may not write, or a file that is no database or was made by a newer Midwatch.
    """
    try:
        url = make_url(url_text)
    except sa.exc.ArgumentError:
        raise SettingsError(
            "database_url is not an SQLAlchemy URL.", "Write it as sqlite:////path/midwatch.db or postgresql://..."
        ) from None
    writer, reader = _sqlite(url, max_bytes) if url.get_backend_name() == "sqlite" else _server(url)
    try:
        with writer.begin() as connection:
            _migrate(connection)
    except SettingsError:
        writer.dispose()
        raise
    except sa.exc.DatabaseError as error:
        writer.dispose()
        raise SettingsError(
            f"The database {url.render_as_string(hide_password=True)} cannot be used: {_reason(error)}.",
            "Check the path, its rights and the free space, or set another database_url.",
        ) from None
    return writer, reader


def store_error(error: sa.exc.DatabaseError) -> StoreError:
    """The sentence for a write that failed."""
    reason = _reason(error)
    if "full" in reason:
        return StoreError("The store's disk is full, so nothing was accepted.", "Free some space; senders retry.")
    return StoreError(f"The store cannot write now: {reason}.", "Check its disk; senders retry.")


def _reason(error: sa.exc.DatabaseError) -> str:
    return (str(error.orig).strip().splitlines() or ["unknown"])[0][:200]


def _migrate(connection: sa.Connection) -> None:
    metadata.create_all(connection)
    version = connection.execute(sa.select(schema_version.c.version)).scalar()
    if version is None:
        connection.execute(schema_version.insert().values(version=SCHEMA_VERSION))
    elif version > SCHEMA_VERSION:
        raise SettingsError(
            f"The database has schema {version}, this Midwatch knows up to {SCHEMA_VERSION}.",
            "Install the newer Midwatch that made it, or set another database_url.",
        )


def _server(url: URL) -> tuple[Engine, Engine]:
    try:
        engine = sa.create_engine(url, pool_pre_ping=True)
    except (ImportError, sa.exc.NoSuchModuleError):
        raise SettingsError(
            f"The driver for {url.drivername} is not installed.", "Install it (pip install psycopg) or use SQLite."
        ) from None
    return engine, engine


def _sqlite(url: URL, max_bytes: int | None) -> tuple[Engine, Engine]:
    """SQLite as a log that survives power loss: WAL, every commit flushed to the disk, one writer at a time."""
    if not url.database or url.database == ":memory:":
        raise SettingsError("An in-memory database would lose every event.", "Set database_url to a file.")
    path = Path(url.database)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # logs may hold secrets: for this user's eyes
    except OSError as error:
        raise SettingsError(
            f"The folder {path.parent} cannot be written ({error.strerror}).", "Set state_dir or database_url."
        ) from None
    engines = []
    for begin in ("BEGIN IMMEDIATE", "BEGIN"):
        engine = sa.create_engine(url)
        pages = max(1, max_bytes // _PAGE_BYTES) if max_bytes is not None else None
        event.listen(engine, "connect", _pragmas(pages))
        event.listen(engine, "begin", _begin(begin))
        engines.append(engine)
    return engines[0], engines[1]


def _pragmas(max_pages: int | None) -> Any:
    def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the begin event below opens transactions, not the driver
        for pragma in (
            f"busy_timeout={_BUSY_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
        if max_pages is not None:
            connection.execute(f"PRAGMA max_page_count={max_pages}")

    return set_pragmas


def _begin(statement: str) -> Any:
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin
