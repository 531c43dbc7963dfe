"""Changes of the store as server-sent events.

A connection first gets everything, so a reconnect (or a restart of the server, which starts counting anew) needs no
memory of what was sent before; afterwards it gets the rows that changed. However many pages are open, the store is read
once per change.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from midwatch.copilot.model import IncidentView
from midwatch.dashboard.reader import IncidentReader, Totals
from midwatch.errors import MidwatchError

HEARTBEAT_S = 15.0
"""Longest silence on a stream, seconds; proxies close connections that are silent for longer."""
PACE_S = 0.4
"""Least time between two messages on a stream, seconds: an alert storm must not become a repaint storm."""

_LINE_BREAK = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What the list shows at one revision of the store. The views carry no log lines."""

    revision: int
    incidents: tuple[IncidentView, ...]
    totals: Totals


class Feed:
    """Reads the store once per revision and shares the snapshot between connections."""

    def __init__(self, reader: IncidentReader, limit: int) -> None:
        self._reader = reader
        self._limit = limit
        self._lock = asyncio.Lock()
        self._latest: Snapshot | None = None

    async def snapshot(self, revision: int) -> Snapshot:
        """The list as it is at `revision` or later."""
        async with self._lock:
            if self._latest is None or self._latest.revision < revision:
                self._latest = await asyncio.to_thread(self._read, revision)
            return self._latest

    def _read(self, revision: int) -> Snapshot:
        views = self._reader.list_incidents(limit=self._limit)
        return Snapshot(
            revision=revision,
            incidents=tuple(replace(view, lines=()) for view in views),
            totals=self._reader.totals(),
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became different between two snapshots. `whole` means: draw the list anew."""

    whole: bool
    added: tuple[IncidentView, ...] = ()
    changed: tuple[IncidentView, ...] = ()
    removed: tuple[IncidentView, ...] = ()


def difference(before: Snapshot | None, after: Snapshot) -> Change:
    """What a page that shows `before` must change to show `after`. `added` is oldest first, so that each goes on top.

    Rows are ordered newest first; `removed` are those that newer ones pushed off the end. Anything else (a first draw,
    an empty list that fills, more new rows than old ones, a row that comes or goes in the middle) draws the list anew.
    """
    if before is None or not before.incidents or not after.incidents:
        return Change(whole=True)
    known = {view.id: view for view in before.incidents}
    newest, oldest = before.incidents[0].id, after.incidents[-1].id
    added = tuple(view for view in reversed(after.incidents) if view.id > newest)
    stayed = [view for view in after.incidents if view.id <= newest]
    removed = tuple(view for view in before.incidents if view.id < oldest)
    if not stayed or any(view.id not in known for view in stayed) or len(stayed) + len(removed) != len(known):
        return Change(whole=True)
    changed = tuple(view for view in stayed if known[view.id] != view)
    return Change(whole=False, added=added, changed=changed, removed=removed)


def encode(html: str, revision: int) -> bytes:
    """One message of a stream: the HTML as `data` lines, the revision as its id."""
    data = "\n".join(f"data: {line}" for line in _LINE_BREAK.split(html))
    return f"id: {revision}\n{data}\n\n".encode("utf-8", "replace")


async def until(stopping: asyncio.Event, messages: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    """The messages of a stream, ended when the app stops, so that no open page holds up its end."""
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            message = asyncio.ensure_future(anext(messages, None))
            try:
                await asyncio.wait({message, stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not message.done():
                    message.cancel()
                    await asyncio.gather(message, return_exceptions=True)
            content = None if message.cancelled() else message.result()
            if content is None:
                return
            yield content
    finally:
        stopped.cancel()
        await messages.aclose()


async def stream(
    reader: IncidentReader,
    draw: Callable[[int], Awaitable[str]],
    *,
    heartbeat_s: float = HEARTBEAT_S,
    pace_s: float = PACE_S,
) -> AsyncGenerator[bytes]:
    """Messages for one connection, for as long as it is read.

    `draw(revision)` gives the HTML to send for a revision, or "" if nothing on this page is different. The stream ends
    when it raises a `MidwatchError`.
    """
    yield b"retry: 1000\n: Midwatch\n\n"
    seen = await reader.wait_change(-1, 0.0)
    while True:
        try:
            html = await draw(seen)
        except MidwatchError:
            return  # the store cannot be read now; the page says that it is not live, and connects again
        if html:
            yield encode(html, seen)
        # Not a wait for a condition: the pace of repaints. Changes of this time arrive together in the next message.
        await asyncio.sleep(pace_s)
        revision = await reader.wait_change(seen, heartbeat_s)
        while revision == seen:
            yield b": heartbeat\n\n"
            revision = await reader.wait_change(seen, heartbeat_s)
        seen = revision
