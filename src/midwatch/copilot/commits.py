"""Group commit: one thread writes, and the requests that wait while the disk flushes share the next flush.

A flush costs milliseconds, an insert microseconds. With a flush per request the disk sets the rate; with one flush for
everything that came in meanwhile, the rate grows with the load and each request still learns that it is on disk only
after the commit. (DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984, section 5.)
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import sqlalchemy as sa

from midwatch.copilot.tables import StoreError, store_error

T = TypeVar("T")
R = TypeVar("R")
Handler = Callable[[sa.Connection, Sequence[T]], list[R]]


@dataclass(frozen=True)
class _Job:
    handler: Callable[[sa.Connection, Sequence[Any]], list[Any]]
    item: Any
    future: Future[Any]


class GroupCommit:
    """The writer. `max_batch` jobs share a transaction at most; 1 is a commit per request.

    `max_waiting` bounds what may queue up before callers are told to come back. `after_commit` runs on the writing
    thread after each transaction that did something.
    """

    def __init__(
        self, engine: sa.Engine, *, after_commit: Callable[[], None], max_batch: int = 512, max_waiting: int = 4096
    ) -> None:
        self._engine = engine
        self._after_commit = after_commit
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="midwatch-writer", daemon=True)
        self.commits = 0
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once closed, or if the writing thread died."""
        return self._thread.is_alive()

    def submit(self, handler: Handler[T, R], item: T) -> Future[R]:
        """Queue one item. The future resolves after the commit that made it durable.

        `handler` is called with every queued item of its kind at once and returns a result for each, in order. Raises
        `StoreError` where the queue is full or the writer is closed.
        """
        if not self.alive:
            raise StoreError("The store is closed.", "Restart the app.")
        if self._jobs.qsize() >= self._max_waiting:
            raise StoreError("More is coming in than the disk can take.", "Send it again in a moment.")
        future: Future[R] = Future()
        self._jobs.put(_Job(handler, item, future))
        return future

    async def run(self, handler: Handler[T, R], item: T) -> R:
        """`submit`, awaited."""
        return await asyncio.wrap_future(self.submit(handler, item))

    def close(self) -> None:
        """Write what is queued, then stop the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            first = self._jobs.get()
            batch = [first] if first is not None else []
            open_ = first is not None
            while open_ and len(batch) < self._max_batch:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    open_ = False
                else:
                    batch.append(job)
            self._commit([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _commit(self, batch: list[_Job]) -> None:
        """Write a batch in one transaction; if that fails, each job in its own, so that one cannot harm another."""
        if not batch:
            return
        try:
            results = self._transaction(batch)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._commit_alone(job)
                return
            batch[0].future.set_exception(_translate(error))
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)

    def _commit_alone(self, job: _Job) -> None:
        try:
            result = self._transaction([job])[0]
        except Exception as error:
            job.future.set_exception(_translate(error))
        else:
            job.future.set_result(result)

    def _transaction(self, batch: list[_Job]) -> list[Any]:
        results: list[Any] = []
        with self._engine.begin() as connection:
            for handler, jobs in groupby(batch, key=lambda job: job.handler):
                results += handler(connection, [job.item for job in jobs])
        self.commits += 1
        self._after_commit()
        return results


def _translate(error: Exception) -> Exception:
    return store_error(error) if isinstance(error, sa.exc.DatabaseError) else error
