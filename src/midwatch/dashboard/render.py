"""Templates to responses: one Jinja environment with escaping on, and the words of `words.py` as filters."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from midwatch.copilot.model import IncidentView
from midwatch.dashboard import words
from midwatch.dashboard.feed import Change, Snapshot
from midwatch.dashboard.incident_page import similar, stretches, waterfall
from midwatch.dashboard.reader import Totals
from midwatch.dashboard.static_files import asset
from midwatch.settings import Settings

THEMES = ("light", "dark")
THEME_COOKIE = "midwatch_theme"

_HOST = re.compile(r"[A-Za-z0-9.\-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


class Pages:
    """Draws every page. `now` gives seconds since the epoch, for ages."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._environment = _environment()

    def list_page(
        self, request: Request, views: Sequence[IncidentView], totals: Totals, *, live: bool, more: bool
    ) -> Response:
        """The list. `live` connects it to the stream; `more` offers older incidents."""
        return self._page(request, "list.html", incidents=views, totals=totals, live=live, more=more)

    def list_changes(self, request: Request, before: Snapshot | None, after: Snapshot, change: Change) -> str:
        """The parts of an open list that changed, each addressed to its place."""
        return self._draw(
            request,
            "_list_changes.html",
            change=change,
            incidents=after.incidents,
            totals=after.totals,
            announcement=_announce(before, change),
        )

    def incident_page(self, request: Request, view: IncidentView) -> Response:
        """One incident."""
        return self._page(request, "incident.html", **self._incident(view))

    def incident_changes(self, request: Request, before: IncidentView | None, view: IncidentView) -> str:
        """An open incident drawn anew."""
        answered_now = before is not None and before.finding is None and view.finding is not None
        announcement = _sentence(view) if answered_now else ""
        return self._draw(request, "_incident_changes.html", announcement=announcement, **self._incident(view))

    def problem(self, request: Request, status: int, what: str, next_step: str) -> Response:
        """A page for a request that cannot be served: what is wrong and what to do."""
        return self._page(request, "problem.html", status, what=what, next_step=next_step, number=status)

    def _incident(self, view: IncidentView) -> dict[str, Any]:
        return {"view": view, "stretches": stretches(view), "similar": similar(view), "waterfall": waterfall(view)}

    def _page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        asked = request.query_params.get("theme", "")
        theme = asked or request.cookies.get(THEME_COOKIE, "")
        html = self._draw(request, template, theme=theme if theme in THEMES else "", **values)
        response = HTMLResponse(html.encode("utf-8", "replace"), status_code=status)
        if asked in THEMES:
            response.set_cookie(THEME_COOKIE, asked, max_age=31_536_000, samesite="lax")
        elif asked:
            response.delete_cookie(THEME_COOKIE)
        return response

    def _draw(self, request: Request, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(
            now=self._now(),
            notifies=self._settings.notify.slack_webhook_url is not None,
            hook_url=f"{self._base_url(request)}/hooks/text",
            hook_has_token=bool((source := self._settings.sources.get("text")) and source.tokens),
            **values,
        )

    def _base_url(self, request: Request) -> str:
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            host = f"{self._settings.app.host}:{self._settings.app.port}"
        return f"{'https' if request.url.scheme == 'https' else 'http'}://{host}"


def _announce(before: Snapshot | None, change: Change) -> str:
    """What a screen reader is told: new incidents and new answers, one sentence, never a whole redraw."""
    if before is None or change.whole:
        return ""
    without = {view.id for view in before.incidents if view.finding is None}
    news = [view for view in change.changed if view.finding is not None and view.id in without]
    if len(news) == 1 and not change.added:
        return _sentence(news[0])
    parts = []
    if change.added:
        parts.append(f"{len(change.added)} new incident{'s' if len(change.added) > 1 else ''}")
    if news:
        parts.append(f"{len(news)} diagnosed")
    return ", ".join(parts)


def _sentence(view: IncidentView) -> str:
    diagnosis = view.finding.diagnosis if view.finding else None
    if diagnosis is None:
        return f"Incident {view.id}: {words.plain(view.title)}"
    return f"Incident {view.id}, {words.category(diagnosis.category)}: {words.plain(diagnosis.summary)}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for name in (
        "visible",
        "plain",
        "category",
        "state",
        "severity",
        "answered",
        "action",
        "waiting",
        "trouble",
        "duration",
        "age",
        "dollars",
        "clock",
        "iso",
        "step_parts",
    ):
        environment.filters[name] = getattr(words, name)
    environment.globals["asset"] = asset
    parts = environment.get_template("_parts.html").module
    for name in ("bar", "severity_mark", "state_mark", "confidence"):
        environment.globals[name] = lru_cache(maxsize=4_096)(getattr(parts, name))
    return environment
