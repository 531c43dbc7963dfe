"""The routes of the page: the live list, one incident, the stream of changes, the same as JSON, and static files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any

from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route

from midwatch.copilot.model import IncidentView
from midwatch.dashboard.feed import Feed, Snapshot, difference, stream, until
from midwatch.dashboard.reader import IncidentReader
from midwatch.dashboard.render import Pages
from midwatch.dashboard.security import SecurityHeaders
from midwatch.dashboard.static_files import CachedStatic, static_folder
from midwatch.dashboard.words import plain
from midwatch.errors import MidwatchError, RequestError
from midwatch.settings import Settings

LIST_LIMIT = 100
"""Incidents on one page."""
MAX_LIMIT = 1_000
"""Most incidents that one request may ask for."""
LIST_TEXT_CHARS = 2_000
"""Longest line text in the JSON list; `/api/incidents/{id}` has it whole. One line of a log may be megabytes."""


def routes(store: IncidentReader, settings: Settings, stopping: asyncio.Event | None = None) -> list[BaseRoute]:
    """All routes of the dashboard, to be placed at the root of an app. Each answers with the security headers.

    Setting `stopping` ends the open streams of changes.
    """
    house = _Dashboard(store, settings, stopping or asyncio.Event())
    guard = [Middleware(SecurityHeaders)]
    return [
        Route("/", house.list_page, middleware=guard),
        Route("/incidents/{id}", house.incident_page, middleware=guard),
        Route("/incidents/{id}/log", house.log_text, middleware=guard),
        Route("/events", house.events, middleware=guard),
        Route("/api/incidents", house.list_json, middleware=guard),
        Route("/api/incidents/{id}", house.incident_json, middleware=guard),
        Mount("/static", CachedStatic(directory=static_folder()), middleware=guard),
    ]


class _Dashboard:
    """The handlers. Reads and drawing run on threads, so that the event loop keeps taking alerts."""

    def __init__(self, reader: IncidentReader, settings: Settings, stopping: asyncio.Event) -> None:
        self._reader = reader
        self._stopping = stopping
        self._pages = Pages(settings)
        self._feed = Feed(reader, LIST_LIMIT)

    async def list_page(self, request: Request) -> Response:
        """`/`: the newest incidents, live; with `?before=ID` older ones, as they were."""

        def draw() -> Response:
            limit, before = _limit(request.query_params), _integer(request.query_params, "before")
            views = tuple(self._reader.list_incidents(limit=limit, before_id=before))
            live = before is None and limit == LIST_LIMIT
            return self._pages.list_page(request, views, self._reader.totals(), live=live, more=len(views) == limit)

        return await self._answer(request, draw)

    async def incident_page(self, request: Request) -> Response:
        """`/incidents/{id}`: one incident, or a page that says that there is none."""
        return await self._answer(request, lambda: self._pages.incident_page(request, self._find(request)))

    async def log_text(self, request: Request) -> Response:
        """`/incidents/{id}/log`: the log that was diagnosed, whole, as plain text."""

        def draw() -> Response:
            text = "".join(f"{line}\n" for line in self._find(request).lines)
            return PlainTextResponse(text.encode("utf-8", "replace"))

        return await self._answer(request, draw)

    async def list_json(self, request: Request) -> Response:
        """`/api/incidents?limit=&before=`: incidents newest first, without their lines, long texts cut."""

        def draw() -> Response:
            limit, before = _limit(request.query_params), _integer(request.query_params, "before")
            views = self._reader.list_incidents(limit=limit, before_id=before)
            return _json({"incidents": [_brief(asdict(replace(view, lines=()))) for view in views]})

        return await self._answer(request, draw)

    async def incident_json(self, request: Request) -> Response:
        """`/api/incidents/{id}`: one incident, whole."""
        return await self._answer(request, lambda: _json(asdict(self._find(request))))

    async def events(self, request: Request) -> Response:
        """`/events`: changes of the list, or of one incident with `?incident=ID`, as server-sent events."""

        def draw() -> Response:
            identifier = _integer(request.query_params, "incident")
            changes: Callable[[int], Awaitable[str]]
            if identifier is None:
                changes = _ListChanges(self._feed, self._pages, request)
            else:
                changes = _IncidentChanges(self._reader, self._pages, request, identifier)
            return StreamingResponse(
                until(self._stopping, stream(self._reader, changes)),
                media_type="text/event-stream",
                headers={"X-Accel-Buffering": "no"},
            )

        return await self._answer(request, draw)

    async def _answer(self, request: Request, draw: Callable[[], Response]) -> Response:
        """What `draw` gives on a thread, or the refusal it raises, as JSON under /api and as a page elsewhere."""
        try:
            return await asyncio.to_thread(draw)
        except MidwatchError as error:
            status = error.status if isinstance(error, RequestError) else 503
            if request.url.path.startswith(("/api/", "/events")):
                return _json({"error": {"message": error.what, "next_step": error.next_step}}, status)
            return self._pages.problem(request, status, error.what, error.next_step)

    def _find(self, request: Request) -> IncidentView:
        text: str = request.path_params["id"]
        view = self._reader.incident(int(text)) if _is_whole_number(text) else None
        if view is None:
            raise RequestError(
                f"There is no incident {plain(text, 40)}.",
                "It may have been in another database; /api/incidents and the list show those there are.",
                status=404,
            )
        return view


class _ListChanges:
    """What one open list must redraw at each revision."""

    def __init__(self, feed: Feed, pages: Pages, request: Request) -> None:
        self._feed = feed
        self._pages = pages
        self._request = request
        self._shown: Snapshot | None = None

    async def __call__(self, revision: int) -> str:
        after = await self._feed.snapshot(revision)
        before, self._shown = self._shown, after
        change = difference(before, after)
        if not change.whole and not (change.added or change.changed or change.removed):
            return ""
        return await asyncio.to_thread(self._pages.list_changes, self._request, before, after, change)


class _IncidentChanges:
    """What one open incident must redraw at each revision."""

    def __init__(self, reader: IncidentReader, pages: Pages, request: Request, identifier: int) -> None:
        self._reader = reader
        self._pages = pages
        self._request = request
        self._identifier = identifier
        self._shown: IncidentView | None = None

    async def __call__(self, revision: int) -> str:
        return await asyncio.to_thread(self._draw)

    def _draw(self) -> str:
        # The row of the list is cheap to read; the whole incident, with its log, only if the row is different.
        rows = self._reader.list_incidents(limit=1, before_id=self._identifier + 1)
        if not rows or rows[0].id != self._identifier or rows[0] == self._shown:
            return ""
        before, self._shown = self._shown, rows[0]
        view = self._reader.incident(self._identifier)
        return self._pages.incident_changes(self._request, before, view) if view else ""


def _integer(query: QueryParams, name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not _is_whole_number(text):
        raise RequestError(
            f"The parameter {name!r} is not a whole number.",
            "Leave it out or give digits only.",
            param=name,
        )
    return int(text)


def _is_whole_number(text: str) -> bool:
    """Whether a text is a number that a database can hold."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def _limit(query: QueryParams) -> int:
    limit = _integer(query, "limit")
    if limit is None:
        return LIST_LIMIT
    if not 1 <= limit <= MAX_LIMIT:
        raise RequestError(
            f"The parameter 'limit' is {limit}; it may be 1 to {MAX_LIMIT}.",
            "Ask for less and page on with before=ID.",
            param="limit",
        )
    return limit


def _brief(document: dict[str, Any]) -> dict[str, Any]:
    """An incident for the list: no lines, and no cited or shown line longer than `LIST_TEXT_CHARS`."""
    del document["lines"]
    finding = document["finding"]
    if finding:
        for line in (*finding["evidence"]["lines"], *finding["diagnosis"]["citations"]):
            line["text"] = line["text"][:LIST_TEXT_CHARS]
    return document


def _json(document: Any, status: int = 200) -> Response:
    # ASCII escapes carry any string, lone surrogates included.
    return Response(json.dumps(document), status_code=status, media_type="application/json")
