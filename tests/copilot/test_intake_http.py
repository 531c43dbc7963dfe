"""The hooks as senders meet them: the real server on a real socket."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from intake_kit import Reader, alert_body, alert_json, loki_body, open_store, post, serving
from pydantic import SecretStr
from starlette.applications import Starlette

from midwatch.cli.app import build_app
from midwatch.copilot.intake.auth import check_caller, check_signature
from midwatch.copilot.metrics import Metrics
from midwatch.copilot.server import hook_routes
from midwatch.copilot.store import Store
from midwatch.errors import RequestError, SettingsError
from midwatch.settings import AppSettings, CopilotSettings, Settings, SourceSettings

SECRET = SourceSettings(tokens=(SecretStr("old"), SecretStr("new")), hmac_secrets=(SecretStr("k1"), SecretStr("k2")))


@asynccontextmanager
async def hooks(folder: Path, store: Store | None = None, **settings: Any) -> AsyncIterator[tuple[str, Store]]:
    """The hooks alone over a store, without workflow and page."""
    store = store or open_store(folder)
    async with serving(Starlette(routes=hook_routes(store, Settings(**settings), Metrics()))) as url:
        yield url, store
    store.close()


async def text_of(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    """Status and text of a page."""
    async with session.get(url) as answer:
        return answer.status, await answer.text()


def explains(body: dict[str, Any]) -> bool:
    error = body["error"]
    return error["message"].endswith(".") and bool(error["next_step"]) and "Traceback" not in str(error)


async def test_each_source_is_accepted_with_its_own_status(tmp_path: Path) -> None:
    async with hooks(tmp_path) as (url, store):
        status, body, _ = await post(f"{url}/hooks/alertmanager", alert_body())
        assert (status, body) == (202, {"accepted": 1, "duplicates": 0, "incidents": [1]})
        status, body, _ = await post(f"{url}/hooks/alertmanager", alert_body())
        assert (status, body) == (202, {"accepted": 0, "duplicates": 1, "incidents": [1]})
        status, body, _ = await post(f"{url}/loki/api/v1/push", loki_body("error: x"))
        assert (status, body) == (204, {})
        status, body, _ = await post(f"{url}/hooks/text?service=redis", b"OOM command not allowed")
        assert status == 202 and body["incidents"] == [2]
        assert [view.service for view in store.list_incidents()] == ["redis", "nginx"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/hooks/alertmanager", b"{", {}, 400),
        ("/hooks/alertmanager", b'{"a": "\xff"}', {}, 400),
        ("/hooks/alertmanager", b"{}", {}, 422),
        ("/hooks/alertmanager", b"{}", {"Content-Type": "text/xml"}, 415),
        ("/hooks/alertmanager", b"{}", {"Origin": "https://evil.example"}, 403),
        ("/hooks/alertmanager", b"{}", {"X-Forwarded-For": "10.1.1.1"}, 403),
        ("/loki/api/v1/push", b"\x01", {"Content-Type": "application/x-protobuf"}, 415),
        ("/loki/api/v1/push", b"\x01", {"Content-Encoding": "gzip"}, 400),
        ("/loki/api/v1/push", gzip.compress(b"\0" * 30_000_000), {"Content-Encoding": "gzip"}, 413),
        ("/hooks/text", b"", {}, 422),
        ("/hooks/text", b"x" * 50_000_000, {}, 413),
        ("/hooks/nosuch", b"x", {}, 404),
    ],
)
async def test_a_wrong_request_gets_its_status_and_a_sentence_and_leaves_no_trace(
    tmp_path: Path, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    async with hooks(tmp_path) as (url, store):
        got, answer, _ = await post(url + path, body, **headers)
        assert got == status and explains(answer)
        assert store.list_incidents() == []
        assert (await post(f"{url}/hooks/text", b"still here"))[0] == 202


async def test_a_hook_that_is_looked_at_says_that_it_takes_posts(tmp_path: Path) -> None:
    async with (
        hooks(tmp_path) as (url, _),
        aiohttp.ClientSession() as session,
        session.get(f"{url}/hooks/text") as answer,
    ):
        assert answer.status == 405 and explains(await answer.json())


def test_a_secret_for_no_hook_is_a_wrong_setting(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(SettingsError, match="alertmanger"):
        hook_routes(store, Settings(sources={"alertmanger": SECRET}), Metrics())
    store.close()


async def test_an_endless_body_without_a_length_is_cut_off_at_the_cap(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 200_000_000:
            sent += 65_536
            yield b"x" * 65_536

    cap = AppSettings(max_body_bytes=1_000_000)
    async with (
        hooks(tmp_path, app=cap) as (url, _),
        aiohttp.ClientSession() as session,
        session.post(f"{url}/hooks/text", data=endless()) as answer,
    ):
        assert answer.status == 413 and explains(await answer.json())
    assert sent < 200_000_000


async def test_dirty_long_and_gzipped_logs_are_accepted(tmp_path: Path) -> None:
    async with hooks(tmp_path) as (url, store):
        assert (await post(f"{url}/hooks/text?service=a", b"bad \xff\xfe bytes"))[0] == 202
        assert (await post(f"{url}/hooks/text?service=b", b"e" * 5_000_000))[0] == 202
        packed = gzip.compress(loki_body("error: packed", service="c"))
        assert (await post(f"{url}/loki/api/v1/push", packed, **{"Content-Encoding": "gzip"}))[0] == 204
        lines = [store.case(view.id).lines[0] for view in reversed(store.list_incidents())]
        assert lines[0] == "bad \ufffd\ufffd bytes" and len(lines[1]) == 5_000_000 and lines[2] == "error: packed"


async def test_a_token_or_a_signature_opens_the_door_and_nothing_else_does(tmp_path: Path) -> None:
    body = alert_body(alert_json())
    good = hmac.new(b"k2", body, hashlib.sha256).hexdigest()
    cases: list[tuple[dict[str, str], int]] = [
        ({}, 401),
        ({"Authorization": "Bearer old"}, 202),
        ({"Authorization": "bearer new"}, 202),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic b2xk"}, 401),
        ({"X-Midwatch-Signature": f"sha256={good}"}, 202),
        ({"X-Midwatch-Signature": good.upper()}, 202),
        ({"X-Midwatch-Signature": "sha256=" + "0" * 64}, 401),
        ({"X-Midwatch-Signature": "sha256="}, 401),
        ({"X-Midwatch-Signature": "sha256=\u00e9"}, 401),
        ({"X-Midwatch-Signature": f"sha256={good}", "Authorization": "Bearer wrong"}, 202),
    ]
    async with hooks(tmp_path, sources={"alertmanager": SECRET}) as (url, _):
        for headers, status in cases:
            got, answer, more = await post(f"{url}/hooks/alertmanager", body, **headers)
            assert got == status, headers
            assert status == 202 or (explains(answer) and more["WWW-Authenticate"] == "Bearer")
        assert (await post(f"{url}/hooks/alertmanager", body + b" ", **{"X-Midwatch-Signature": good}))[0] == 401


@pytest.mark.parametrize(
    ("peer", "headers", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        (None, {}, True),
        ("127.0.0.1", {"origin": "http://localhost:8010"}, True),
        ("10.0.0.7", {}, False),
        ("::ffff:10.0.0.7", {}, False),
        ("127.0.0.1", {"forwarded": "for=10.0.0.7"}, False),
        ("127.0.0.1", {"origin": "null"}, False),
        ("not an address", {}, False),
    ],
)
def test_without_a_secret_only_this_machine_may_post(peer: str | None, headers: dict[str, str], allowed: bool) -> None:
    if allowed:
        check_caller(None, "text", headers, peer)
        check_signature(None, "text", headers, b"body")
        return
    with pytest.raises(RequestError) as caught:
        check_caller(None, "text", headers, peer)
    assert caught.value.status == 403 and "sources.text.tokens" in caught.value.next_step


async def test_a_full_disk_is_a_503_with_a_time_to_come_back_and_never_a_202(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'midwatch.db'}", max_bytes=300_000)
    async with hooks(tmp_path, store) as (url, _):
        status, body, headers = await post(f"{url}/hooks/text?service=big", os.urandom(800_000).hex().encode())
        assert status == 503 and int(headers["Retry-After"]) > 0 and "full" in body["error"]["message"]
        assert (await post(f"{url}/hooks/text?service=small", b"fits"))[0] == 202


async def test_neighbours_of_a_bad_request_are_all_accepted(tmp_path: Path) -> None:
    async with hooks(tmp_path) as (url, store):
        jobs = [post(f"{url}/hooks/alertmanager", alert_body(alert_json("A", f"s{n}"))) for n in range(50)]
        jobs += [post(f"{url}/hooks/alertmanager", bad) for bad in (b"{", b"[]", b"\xff") * 10]
        statuses = [status for status, _, _ in await asyncio.gather(*jobs)]
        assert statuses[:50] == [202] * 50 and set(statuses[50:]) == {400, 422}
        assert len(store.list_incidents()) == 50


async def test_the_whole_app_diagnoses_what_comes_in_and_counts_it(tmp_path: Path) -> None:
    store = open_store(tmp_path, settle_s=0.0)
    reader = Reader()
    app = build_app(Settings(copilot=CopilotSettings(settle_s=0.0)), store, reader)
    async with serving(app) as url, aiohttp.ClientSession() as session:
        async with asyncio.timeout(20):
            while (await text_of(session, f"{url}/healthz"))[0] != 200:
                pass
            for _ in range(2):
                await post(f"{url}/hooks/alertmanager", alert_body())
            seen = store.changes
            while store.totals().diagnosed < 1:
                seen = await store.wait_change(seen, 20)
        _, page = await text_of(session, f"{url}/metrics")
        for line in (
            'midwatch_events_total{source="alertmanager"} 2.0',
            'midwatch_duplicate_events_total{source="alertmanager"} 1.0',
            "midwatch_incidents_opened_total 1.0",
            'midwatch_diagnoses_total{action="accept",category="disk_full"} 1.0',
            'midwatch_incidents{state="diagnosed"} 1.0',
        ):
            assert line in page
        health = json.loads((await text_of(session, f"{url}/healthz"))[1])
        assert health == {"status": "ok", "store": True, "workflow": True}
        body = json.loads((await text_of(session, f"{url}/api/incidents"))[1])
        assert body["incidents"][0]["finding"]["diagnosis"]["category"] == "disk_full"
    assert len(reader.cases) == 1
    store.close()
