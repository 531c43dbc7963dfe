"""From settled incident to stored diagnosis, whatever fails on the way.

claim (commit) → build the case → diagnose → diagnosis, state and message (one commit). A crash between the commits
leaves a row that says so, and `recover` puts it back in the queue. A host that does not answer leaves the incident
waiting, with the reason to be seen and a growing pause; no incident's trouble reaches its neighbours.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from midwatch.copilot import codec
from midwatch.copilot.claims import Claim, Failure, Outcome
from midwatch.copilot.model import Case, Finding
from midwatch.copilot.notify import SLACK, slack_body
from midwatch.copilot.store import Store, StoreError
from midwatch.errors import MidwatchError, ProviderError

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Pauses after the first, second, ... failed attempt; the last one repeats."""
STUCK_S = 600.0
"""The pause where asking again soon cannot help: a wrong key, or a fault of our own."""
DIAGNOSE_DEADLINE_S = 600.0
_IDLE_S = 60.0
_PRUNE_EVERY_S = 600.0
_log = logging.getLogger("midwatch.copilot")


class Diagnoser(Protocol):
    """Whoever reads a case. Raises `ProviderError` where no model answered."""

    async def diagnose(self, case: Case) -> Finding:
        """Read the case and say what is wrong."""


class Workflow:
    """Diagnoses what the store holds, `concurrency` incidents at a time.

    `channels` are those that a diagnosis is told on; `page_url` stands in the message. `on_finding` is called with each
    stored finding (for metrics). `clock` gives seconds since the epoch, `pause` waits so many seconds.
    """

    def __init__(
        self,
        store: Store,
        diagnoser: Diagnoser,
        *,
        page_url: str,
        channels: tuple[str, ...] = (),
        concurrency: int = 2,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_finding: Callable[[Finding], None] = lambda finding: None,
    ) -> None:
        self._store = store
        self._diagnoser = diagnoser
        self._page_url = page_url
        self._channels = channels
        self._concurrency = concurrency
        self._clock = clock
        self._pause = pause
        self._on_finding = on_finding

    async def recover(self) -> int:
        """Call before `run`: put back what a dead process had under way. Returns how many incidents."""
        recovered = await self._store.recover(BACKOFF_S)
        if recovered:
            _log.info("workflow: %d incidents were under way when the last process ended; they wait again", recovered)
        return recovered

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work())
            group.create_task(self._keep_house())

    async def step(self) -> bool:
        """Diagnose one incident that has settled. True if there was one."""
        due, _ = await asyncio.to_thread(self._store.next_due)
        if due is None or due > self._clock():
            return False
        claim = await self._store.claim()
        if claim is None:
            return False
        try:
            outcome = await self._diagnose(claim)
        except Exception as error:
            failure = _failure(claim, error)
            await self._until_stored(lambda: self._store.fail(failure))
        else:
            await self._until_stored(lambda: self._store.finish(outcome))
            self._on_finding(outcome.finding)
        return True

    async def _diagnose(self, claim: Claim) -> Outcome:
        case = await asyncio.to_thread(self._store.case, claim.incident_id)
        async with asyncio.timeout(DIAGNOSE_DEADLINE_S):
            finding = await self._diagnoser.diagnose(case)
        lines = await asyncio.to_thread(codec.pack_lines, case.lines)
        view = await asyncio.to_thread(self._store.incident, claim.incident_id)
        assert view is not None, "an incident is never deleted"
        messages = tuple(
            (channel, slack_body(view, finding, self._page_url)) for channel in self._channels if channel == SLACK
        )
        return Outcome(claim=claim, finding=finding, lines=lines, messages=messages)

    async def _until_stored(self, write: Callable[[], Awaitable[None]]) -> None:
        """What was found out is written down, however long the disk takes; asking the model again would cost more."""
        while True:
            try:
                return await write()
            except StoreError as error:
                _log.warning("workflow: %s", error)
                await self._pause(BACKOFF_S[0])

    async def _work(self) -> None:
        while True:
            seen = self._store.changes
            try:
                if await self.step():
                    continue
                due, _ = await asyncio.to_thread(self._store.next_due)
            except StoreError as error:
                _log.warning("workflow: %s", error)
                await self._pause(BACKOFF_S[0])
                continue
            wait_s = _IDLE_S if due is None else min(_IDLE_S, max(0.0, due - self._clock()))
            await self._store.wait_change(seen, wait_s)

    async def _keep_house(self) -> None:
        """Forget old log lines now and then."""
        while True:
            try:
                await self._store.prune()
            except StoreError as error:
                _log.warning("workflow: %s", error)
            await self._pause(_PRUNE_EVERY_S)


def _failure(claim: Claim, error: Exception) -> Failure:
    """What to write beside the incident, and when to try again."""
    stuck = False
    if isinstance(error, StoreError):
        words = str(error)
    elif isinstance(error, MidwatchError):
        words = str(error)
        stuck = not error.retryable if isinstance(error, ProviderError) else True
    elif isinstance(error, TimeoutError):
        words = f"No diagnosis within {DIAGNOSE_DEADLINE_S:g} s."
    else:
        _log.error("workflow: incident %d could not be diagnosed", claim.incident_id, exc_info=error)
        words = f"A fault of Midwatch itself ({type(error).__name__}); the app's log has the details."
        stuck = claim.attempts >= len(BACKOFF_S)
    pause_s = STUCK_S if stuck else BACKOFF_S[min(claim.attempts, len(BACKOFF_S)) - 1]
    return Failure(claim=claim, error=words, retry_in_s=pause_s)
