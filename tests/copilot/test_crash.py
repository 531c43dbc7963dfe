"""Kill the app at the worst moments: nothing that was accepted is lost, and nobody is told twice.

`midwatch app` runs as a real process; the model host and the receiver are small real servers in this one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from intake_kit import alert_body, alert_json, loki_body

LIMIT_S = 60


def fitting(schema: dict[str, Any]) -> Any:
    """The smallest value that fits a JSON schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    match schema.get("type"):
        case "object":
            return {key: fitting(inner) for key, inner in schema["properties"].items()}
        case "array":
            return [fitting(schema["items"]) for _ in range(max(1, schema.get("minItems", 1)))]
        case "string":
            return "The disk is full and writes fail."
        case "number" | "integer":
            return schema.get("minimum", 0)
        case _:
            raise AssertionError(schema)


class World:
    """The model host and the receiver. Each can be told to hold its answers until released."""

    def __init__(self) -> None:
        self.calls = 0
        self.posts: list[tuple[str, int]] = []
        self.called, self.posted = asyncio.Event(), asyncio.Event()
        self.may_answer, self.may_receive = asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self.may_receive.set()
        self.url = ""

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls += 1
        self.called.set()
        await self.may_answer.wait()
        answer = json.dumps(fitting(body["response_format"]["json_schema"]["schema"]))
        usage = {"prompt_tokens": 100, "completion_tokens": 20}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunk = {"model": "fake", "choices": [{"delta": {"content": answer}, "finish_reason": "stop"}], "usage": usage}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    async def receive(self, request: web.Request) -> web.Response:
        text = await request.text()
        found = re.search(r"/incidents/(\d+)", text)
        assert found is not None
        self.posts.append((request.headers["Idempotency-Key"], int(found.group(1))))
        self.posted.set()
        await self.may_receive.wait()
        return web.Response(text="ok")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/slack", self.receive)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.may_answer.set()
            self.may_receive.set()
            await runner.cleanup()


class App:
    """`midwatch app` as a process of its own, on a port that stays the same over restarts."""

    def __init__(self, folder: Path, world: World, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = ["-m", "midwatch", "app", "--port", str(self.port), "--engine-url", world.url]
        self._environment = {
            **os.environ,
            "MIDWATCH_STATE_DIR": str(folder),
            "MIDWATCH_NOTIFY__SLACK_WEBHOOK_URL": f"{world.url}/slack",
            "MIDWATCH_COPILOT__SETTLE_S": "0.2",
            "MIDWATCH_COPILOT__SETTLE_MAX_S": "0.5",
            **environment,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, session: aiohttp.ClientSession) -> None:
        self._process = await asyncio.create_subprocess_exec(sys.executable, *self._argv, env=self._environment)
        async with asyncio.timeout(LIMIT_S):
            while True:
                assert self._process.returncode is None, "midwatch app ended at its start"
                try:
                    async with session.get(f"{self.url}/healthz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.02)  # until it listens there is nothing else to wait on

    async def end(self, how: signal.Signals) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(how)
        await self._process.wait()


async def incidents(session: aiohttp.ClientSession, app: App) -> list[dict[str, Any]]:
    async with session.get(f"{app.url}/api/incidents?limit=500") as answer:
        found: list[dict[str, Any]] = (await answer.json())["incidents"]
        return found


async def until_told(session: aiohttp.ClientSession, app: App) -> list[dict[str, Any]]:
    """Wait, on the page's own stream of changes, until every incident is diagnosed and told of."""
    async with asyncio.timeout(LIMIT_S), session.get(f"{app.url}/events") as changes:
        while True:
            found = await incidents(session, app)
            if found and all(item["state"] == "diagnosed" and item["notified_at"] for item in found):
                return found
            assert await changes.content.readline() or not changes.content.at_eof()


async def deliver(session: aiohttp.ClientSession, app: App) -> Counter[str]:
    """Thirty accepted deliveries from three sources, a third of them repeats; the answer counts them by service."""
    accepted: Counter[str] = Counter()
    posts: list[tuple[str, str, bytes]] = []
    for n in range(5):
        name = f"alerts-{n}"
        posts += [(name, "/hooks/alertmanager", alert_body(alert_json("HighErrorRate", name)))] * 3
        posts += [(name, "/loki/api/v1/push", loki_body("write failed: No space left on device", service=name))]
    for n in range(5):
        posts += [(f"text-{n}", f"/hooks/text?service=text-{n}", b"fatal: No space left on device\n")] * 2
    for service, path, body in posts:
        async with session.post(app.url + path, data=body) as answer:
            assert answer.status in {202, 204}, await answer.text()
            accepted[service] += 1
    assert accepted.total() == 30
    return accepted


async def test_sigkill_between_receipt_and_diagnosis_loses_nothing_and_tells_nobody_twice(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World().running())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        app = App(tmp_path, world)
        stack.push_async_callback(app.end, signal.SIGKILL)
        world.may_answer.clear()
        await app.start(session)
        accepted = await deliver(session, app)
        async with asyncio.timeout(LIMIT_S):
            await world.called.wait()
        assert world.posts == []
        await app.end(signal.SIGKILL)

        world.may_answer.set()
        await app.start(session)
        found = await until_told(session, app)
        await app.end(signal.SIGTERM)

    assert {item["service"]: item["deliveries"] for item in found} == dict(accepted)
    assert all(item["finding"]["diagnosis"]["summary"] for item in found)
    assert Counter(incident for _, incident in world.posts) == {item["id"]: 1 for item in found}


async def test_sigkill_while_a_message_is_under_way_repeats_it_only_under_the_same_key(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World().running())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        app = App(tmp_path, world)
        stack.push_async_callback(app.end, signal.SIGKILL)
        world.may_receive.clear()
        await app.start(session)
        await deliver(session, app)
        async with asyncio.timeout(LIMIT_S):
            await world.posted.wait()
        await app.end(signal.SIGKILL)

        world.may_receive.set()
        await app.start(session)
        found = await until_told(session, app)
        await app.end(signal.SIGTERM)

    keys = dict(world.posts)
    assert sorted(keys.values()) == sorted(item["id"] for item in found)
    assert len(world.posts) == len(found) + 1


async def test_a_second_app_on_the_same_store_is_refused_in_plain_words(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World().running())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        app = App(tmp_path, world)
        stack.push_async_callback(app.end, signal.SIGKILL)
        await app.start(session)
        second = App(tmp_path, world)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *second._argv, env=second._environment, stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
        assert process.returncode == 2
        assert b"Another midwatch app is using" in said and b"Traceback" not in said
