"""Everything that must survive: events, logs, incidents, diagnoses and the messages that tell of them.

A 202 means that the event is on disk: `accept` returns after the commit that holds it (see `commits.py`). Writes go
through one thread; reads run on connections of their own and never wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import sqlalchemy as sa

from midwatch.copilot import claims, memory, placing, views
from midwatch.copilot.claims import Claim, Failure, Message, Outcome, Sent
from midwatch.copilot.commits import GroupCommit
from midwatch.copilot.incidents import Rules
from midwatch.copilot.memory import Added, PastIncident, Vectors
from midwatch.copilot.model import Case, Event, Feedback, IncidentView
from midwatch.copilot.placing import Prepared, Receipt, prepare
from midwatch.copilot.runbooks import Runbook
from midwatch.copilot.tables import StoreError, connect, store_error
from midwatch.copilot.views import Totals
from midwatch.settings import CopilotSettings

__all__ = ["Prepared", "Receipt", "Store", "StoreError", "Totals", "prepare"]

T = TypeVar("T")


class Store:
    """The store of one app. Open it once; close it at the end.

    `clock` gives seconds since the epoch. `max_batch` is how many requests share a commit at most (1 for none).
    `max_bytes` bounds an SQLite file. Raises `SettingsError` where the database cannot be used.
    """

    def __init__(
        self,
        url: str,
        settings: CopilotSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        max_batch: int = 512,
        max_bytes: int | None = None,
    ) -> None:
        settings = settings or CopilotSettings()
        self._clock = clock
        self._window_s = settings.group_window_s
        self._retention_s = settings.log_retention_hours * 3600
        self._rules = Rules(
            group_window_s=settings.group_window_s, settle_s=settings.settle_s, settle_max_s=settings.settle_max_s
        )
        self._lock = threading.Lock()
        self._changes = 0
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._write_engine, self._read_engine = connect(url, max_bytes=max_bytes)
        self._writer = GroupCommit(self._write_engine, after_commit=self._changed, max_batch=max_batch)

    def close(self) -> None:
        """Write what is queued and let go of the database."""
        self._writer.close()
        self._write_engine.dispose()
        self._read_engine.dispose()

    @property
    def writable(self) -> bool:
        """False once the writing thread has ended."""
        return self._writer.alive

    @property
    def commits(self) -> int:
        """Transactions committed since the store was opened."""
        return self._writer.commits

    # -- what comes in ------------------------------------------------------------------------------------------

    async def accept(self, delivery: Sequence[Event] | Prepared) -> Receipt:
        """Keep a delivery. Returns when it is on disk; raises `StoreError` if it is not, and then nothing of it is."""
        ready = delivery if isinstance(delivery, Prepared) else prepare(delivery)
        return await self._writer.run(self._place, ready)

    # -- what the workflow takes and puts back -------------------------------------------------------------------

    async def claim(self) -> Claim | None:
        """Take an incident that has settled, or None."""
        return await self._writer.run(self._claim, None)

    async def finish(self, outcome: Outcome) -> None:
        """Store a diagnosis, the incident's state and the messages about it, all or nothing."""
        await self._writer.run(self._finish, outcome)

    async def fail(self, failure: Failure) -> None:
        """Let an incident wait for another attempt."""
        await self._writer.run(self._fail, failure)

    async def claim_message(self) -> Message | None:
        """Take a message that is due, or None."""
        return await self._writer.run(self._claim_message, None)

    async def settle_message(self, sent: Sent) -> None:
        """Record what became of a message."""
        await self._writer.run(self._settle, sent)

    async def recover(self, backoff_s: Sequence[float] = (0.0,)) -> int:
        """Call once at the start: what a dead process had taken waits again. Returns how many incidents."""
        return await self._writer.run(self._recover, tuple(backoff_s))

    async def prune(self) -> int:
        """Forget log lines older than `log_retention_hours`. Returns how many pushes were forgotten."""
        return await self._writer.run(self._prune, None)

    # -- what is kept for the next time --------------------------------------------------------------------------

    async def add_runbooks(self, runbooks: Sequence[Runbook]) -> Added:
        """Keep runbooks, all or none; one of a known name replaces it."""
        return await self._writer.run(self._add_runbooks, runbooks)

    async def remove_runbooks(self, name: str) -> int:
        """Forget a runbook, or those of a folder. Returns how many there were."""
        return await self._writer.run(self._remove_runbooks, name)

    async def add_feedback(self, feedback: Feedback) -> Feedback:
        """Keep a person's verdict on an incident. Raises `RequestError` where it fits none."""
        return await self._writer.run(self._add_feedback, feedback)

    def keep_vectors(self, vectors: Vectors) -> None:
        """Keep vectors, so that no text is encoded twice. Blocks until they are on disk."""
        self._writer.submit(self._add_vectors, vectors).result()

    def runbooks(self) -> list[Runbook]:
        """Every runbook with its sections, by name."""
        return self._read(memory.list_runbooks)

    def feedback(self) -> list[Feedback]:
        """The last verdict on each incident that has one, the newest first."""
        return self._read(memory.list_feedback)

    def past_incidents(self) -> list[PastIncident]:
        """The incidents whose cause a person vouched for, the newest first."""
        return self._read(memory.past_incidents)

    def memory_revision(self) -> tuple[object, ...]:
        """Differs once a runbook or a verdict has changed, by whichever process."""
        return self._read(memory.revision)

    def vectors(self, model: str, digests: Sequence[str]) -> dict[str, bytes]:
        """The kept vectors of a model by the hash of their text."""
        return self._read(lambda connection: memory.known_vectors(connection, model, digests))

    # -- what others read ----------------------------------------------------------------------------------------

    def list_incidents(
        self,
        limit: int = 100,
        before_id: int | None = None,
        state: Literal["waiting", "diagnosing", "diagnosed"] | None = None,
    ) -> list[IncidentView]:
        """The newest first, with findings but without reasons and lines."""
        return self._read(lambda connection: views.list_incidents(connection, limit, before_id, state))

    def incident(self, incident_id: int) -> IncidentView | None:
        """One incident whole. `lines[n - 1]` is line n of the log that was diagnosed."""
        return self._read(lambda connection: views.incident(connection, incident_id, self._window_s))

    def totals(self) -> Totals:
        """Counts, costs and percentiles."""
        return self._read(views.totals)

    def outbox_states(self) -> dict[str, int]:
        """How many messages are in which state."""
        return self._read(views.outbox_states)

    def case(self, incident_id: int) -> Case:
        """What triage is to read."""
        return self._read(lambda connection: views.case(connection, incident_id, self._window_s))

    def next_due(self) -> tuple[float | None, float | None]:
        """When the next incident, and the next message, are due."""
        return self._read(views.next_due)

    @property
    def changes(self) -> int:
        """A number that grows with every change; start `wait_change` from it."""
        return self._changes

    async def wait_change(self, seen: int, timeout_s: float) -> int:
        """Wait until `changes` differs from `seen`, or for `timeout_s` seconds; returns `changes` as it is then."""
        signal = asyncio.Event()
        waiter = (asyncio.get_running_loop(), signal)
        with self._lock:
            if self._changes != seen:
                return self._changes
            self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await signal.wait()
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiters.discard(waiter)
        return self._changes

    # -- on the writing thread -----------------------------------------------------------------------------------

    def _place(self, connection: sa.Connection, batch: Sequence[Prepared]) -> list[Receipt]:
        return placing.place(connection, batch, self._rules, self._clock())

    def _claim(self, connection: sa.Connection, batch: Sequence[None]) -> list[Claim | None]:
        return [claims.claim_due(connection, self._clock()) for _ in batch]

    def _finish(self, connection: sa.Connection, batch: Sequence[Outcome]) -> list[None]:
        for outcome in batch:
            claims.store_outcome(connection, outcome, self._clock())
        return [None] * len(batch)

    def _fail(self, connection: sa.Connection, batch: Sequence[Failure]) -> list[None]:
        for failure in batch:
            claims.store_failure(connection, failure, self._clock())
        return [None] * len(batch)

    def _claim_message(self, connection: sa.Connection, batch: Sequence[None]) -> list[Message | None]:
        return [claims.claim_message(connection, self._clock()) for _ in batch]

    def _settle(self, connection: sa.Connection, batch: Sequence[Sent]) -> list[None]:
        for sent in batch:
            claims.store_sent(connection, sent, self._clock())
        return [None] * len(batch)

    def _recover(self, connection: sa.Connection, batch: Sequence[tuple[float, ...]]) -> list[int]:
        return [claims.recover(connection, self._clock(), backoff_s) for backoff_s in batch]

    def _prune(self, connection: sa.Connection, batch: Sequence[None]) -> list[int]:
        return [claims.prune_logs(connection, self._clock() - self._retention_s) for _ in batch]

    def _add_runbooks(self, connection: sa.Connection, batch: Sequence[Sequence[Runbook]]) -> list[Added]:
        return [memory.add_runbooks(connection, runbooks, self._clock()) for runbooks in batch]

    def _remove_runbooks(self, connection: sa.Connection, batch: Sequence[str]) -> list[int]:
        return [memory.remove_runbooks(connection, name) for name in batch]

    def _add_feedback(self, connection: sa.Connection, batch: Sequence[Feedback]) -> list[Feedback]:
        return [memory.add_feedback(connection, feedback, self._clock()) for feedback in batch]

    def _add_vectors(self, connection: sa.Connection, batch: Sequence[Vectors]) -> list[None]:
        for found in batch:
            memory.add_vectors(connection, found)
        return [None] * len(batch)

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        try:
            with self._read_engine.connect() as connection:
                return query(connection)
        except sa.exc.DatabaseError as error:
            raise store_error(error) from None

    def _changed(self) -> None:
        with self._lock:
            self._changes += 1
            waiters, self._waiters = self._waiters, set()
        for loop, signal in waiters:
            with contextlib.suppress(RuntimeError):  # a loop that has ended has nobody to wake
                loop.call_soon_threadsafe(signal.set)
