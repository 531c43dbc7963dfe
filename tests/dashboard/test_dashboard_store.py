"""The page over the real store: what the workflow writes is what a reader sees."""

from __future__ import annotations

import asyncio
import re
import shlex
from html import unescape

import pytest
from dashboard_site import serve
from markup import Page
from sample_incidents import finding, postgres_log
from starlette.requests import Request
from test_dashboard_feed import read_message

from midwatch.copilot import codec
from midwatch.copilot.claims import Outcome
from midwatch.copilot.metrics import Metrics
from midwatch.copilot.model import Event, LogLine
from midwatch.copilot.server import hook_routes
from midwatch.copilot.store import Store
from midwatch.dashboard.app import _IncidentChanges
from midwatch.dashboard.render import Pages
from midwatch.settings import CopilotSettings, Settings


@pytest.fixture
def store(tmp_path):
    opened = Store(f"sqlite:///{tmp_path / 'midwatch.db'}", CopilotSettings(settle_s=0, settle_max_s=0))
    yield opened
    opened.close()


def alert(fingerprint: str, service: str = "postgres") -> Event:
    return Event(
        source="alertmanager",
        fingerprint=fingerprint,
        status="firing",
        service=service,
        title="TooManyConnections",
        severity="critical",
        lines=tuple(LogLine(text=line) for line in postgres_log()),
    )


async def diagnose_next(store: Store) -> int:
    claim = await store.claim()
    assert claim is not None
    lines = store.case(claim.incident_id).lines
    found = finding(lines, [181], category="connection_exhaustion", summary="Out of connections.")
    await store.finish(Outcome(claim=claim, finding=found, lines=codec.pack_lines(lines), messages=()))
    return claim.incident_id


async def test_an_alert_appears_on_the_open_list_and_then_its_answer(store, tmp_path):
    async for site in serve(store, Settings(state_dir=tmp_path)):
        async with site.session.get(site.url + "/events") as answer:
            assert "Nothing to watch yet" in await read_message(answer)
            await store.accept([alert("a"), alert("a")])
            assert "Waiting for the events to settle." in await read_message(answer)
            await diagnose_next(store)
            message = ""
            while "Out of connections." not in message:
                message = await read_message(answer)
            assert "Connections exhausted" in message


async def test_the_incident_page_shows_the_log_that_was_diagnosed(store, tmp_path):
    await store.accept([alert("a")])
    identifier = await diagnose_next(store)
    async for site in serve(store, Settings(state_dir=tmp_path)):
        answer, html = await site.get(f"/incidents/{identifier}")
        page = Page(html)
        assert answer.status == 200
        assert page.breaches() == []
        assert "line-181" in page.ids
        assert "sorry, too many clients already" in page.text
        assert "opened this incident" in page.text
        _, html = await site.get("/")
        assert "1 Diagnosed" in Page(html).text or "Diagnosed 1" in Page(html).text


async def test_an_open_incident_is_not_read_whole_for_its_neighbours(store, tmp_path):
    await store.accept([alert("a")])
    identifier = await diagnose_next(store)
    whole_reads: list[int] = []

    class Counting:
        def __getattr__(self, name):
            return getattr(store, name)

        def incident(self, incident_id):
            whole_reads.append(incident_id)
            return store.incident(incident_id)

    request = Request({"type": "http", "path": "/events", "headers": [], "query_string": b""})
    changes = _IncidentChanges(Counting(), Pages(Settings(state_dir=tmp_path)), request, identifier)
    assert "Out of connections." in await changes(1)
    await store.accept([alert("b", "redis")])
    assert await changes(2) == ""
    assert whole_reads == [identifier]
    await store.accept([alert("a")])
    assert "2 deliveries of 1 event" in await changes(3)
    assert whole_reads == [identifier, identifier]


async def test_pages_are_read_while_alerts_pour_in(store, tmp_path):
    async for site in serve(store, Settings(state_dir=tmp_path)):
        pouring = asyncio.gather(*(store.accept([alert(f"f{n}", f"service-{n % 7}")]) for n in range(60)))
        for _ in range(5):
            answer, html = await site.get("/")
            assert answer.status == 200
            assert Page(html).breaches() == []
        await pouring


async def test_the_command_on_the_empty_page_opens_the_first_incident(store, tmp_path):
    settings = Settings(state_dir=tmp_path)
    async for site in serve(store, settings, *hook_routes(store, settings, Metrics())):
        _, html = await site.get("/")
        shown = re.search(r'<pre id="curl-line"[^>]*>(.*?)</pre>', html, re.DOTALL)
        program, *options, url = shlex.split(unescape(shown.group(1)).replace("\\\n", " "))
        assert program == "curl"
        header, body = options[options.index("-H") + 1], options[options.index("--data-binary") + 1]
        name, value = header.split(": ")
        async with site.session.post(url, data=body.encode(), headers={name: value}) as answer:
            assert answer.status == 202
        _, html = await site.get("/incidents/1")
        assert "FATAL: sorry, too many clients already" in Page(html).text
