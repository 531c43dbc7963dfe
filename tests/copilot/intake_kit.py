"""What the tests of intake, store and workflow share: bodies, findings, a clock turned by hand, the real server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp import web

from midwatch.copilot.intake import SOURCES
from midwatch.copilot.model import Case, Citation, Diagnosis, Event, Evidence, EvidenceLine, Finding
from midwatch.copilot.store import Store
from midwatch.settings import CopilotSettings

ALERTMANAGER, LOKI, TEXT = SOURCES
START = "2026-01-02T03:04:05Z"


class HandClock:
    """Seconds since the epoch, moved by the test."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def alert_json(name: str = "HighErrorRate", service: str = "nginx", **changes: Any) -> dict[str, Any]:
    labels = {"alertname": name, "service": service, "severity": changes.pop("severity", "warning")}
    return {
        "status": "firing",
        "labels": labels,
        "annotations": {"summary": f"{name} on {service}", "description": "5xx above 5 %"},
        "startsAt": START,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example/graph",
        **changes,
    }


def alert_body(*alerts: dict[str, Any]) -> bytes:
    return json.dumps({"version": "4", "status": "firing", "alerts": list(alerts or [alert_json()])}).encode()


def alerts(*items: dict[str, Any]) -> list[Event]:
    return ALERTMANAGER.parse(alert_body(*items), {})


def loki_body(*lines: str, service: str = "nginx", first_ns: int = 1_700_000_000_000_000_000) -> bytes:
    values = [[str(first_ns + number), line] for number, line in enumerate(lines)]
    return json.dumps({"streams": [{"stream": {"app": service}, "values": values}]}).encode()


def pushed(*lines: str, service: str = "nginx", first_ns: int = 1_700_000_000_000_000_000) -> list[Event]:
    return LOKI.parse(loki_body(*lines, service=service, first_ns=first_ns), {})


def posted(text: str, service: str = "nginx") -> list[Event]:
    return TEXT.parse(text.encode(), {"service": service})


def finding(category: str = "disk_full", summary: str = "The disk is full.", **changes: Any) -> Finding:
    text = changes.pop("line", "write failed: No space left on device")
    line = EvidenceLine(id="L1", line_number=1, text=text, shown=text, template="write failed: <*>")
    evidence = Evidence(
        lines=(line,), ranking=(), entities=("db",), total_lines=1, total_templates=1, tokens=12, mining_ms=0.5
    )
    values: dict[str, Any] = {
        "category": category,
        "severity": "high",
        "entity": "db",
        "summary": summary,
        "confidence": 0.7,
        "calibrated": False,
        "action": "accept",
        "citations": (Citation(id="L1", line_number=1, text=text),),
        "next_steps": ("df -h",),
        "provider": "fake",
        "model": "fake-1",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cost_usd": 0.001,
        "ttft_ms": 5.0,
        "latency_ms": 10.0,
    }
    return Finding(evidence=evidence, diagnosis=Diagnosis(**{**values, **changes}))


class Reader:
    """A diagnoser that answers what it is told to and remembers what it read."""

    def __init__(self, answer: Callable[[Case], Finding] = lambda case: finding()) -> None:
        self.cases: list[Case] = []
        self._answer = answer

    async def diagnose(self, case: Case) -> Finding:
        self.cases.append(case)
        return self._answer(case)


def open_store(folder: Path, clock: Callable[[], float] | None = None, **settings: Any) -> Store:
    return Store(
        f"sqlite:///{folder / 'midwatch.db'}", CopilotSettings(**settings), **({"clock": clock} if clock else {})
    )


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI app with the real server; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, proxy_headers=False))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


class Receiver:
    """A small real server in Slack's place. `answers` are given in turn; after them it says 200."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.heard = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        self.posts.append((request.headers["Idempotency-Key"], await request.json()))
        self.heard.set()
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        return web.Response(status=status, headers=headers, text="ok" if status == 200 else "no")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/hook", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        finally:
            await runner.cleanup()


async def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON body and headers of one post."""
    async with aiohttp.ClientSession() as session, session.post(url, data=io.BytesIO(body), headers=headers) as answer:
        text = await answer.read()
        return answer.status, json.loads(text) if text else {}, dict(answer.headers)


def webhook_examples(kind: str) -> list[Path]:
    """Real bodies from the shared data folder; a skip with the reason where that folder is not."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("MIDWATCH_DATA", default)) / "webhooks" / kind
    if not folder.is_dir():
        pytest.skip(f"no example bodies at {folder}; set MIDWATCH_DATA to the folder that holds webhooks/")
    return sorted(folder.glob("*.json"))
