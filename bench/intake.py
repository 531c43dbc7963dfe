"""How fast are alerts made durable, and what does a storm of them cost?

    python bench/intake.py [--rounds 5] [--alerts 2000] [--alertmanager /usr/bin/prometheus-alertmanager]

Sixteen clients post one alert per request to `midwatch app` as it is shipped: hooks, workflow and page in one process,
SQLite with a flush before each answer. The clients and the model host's stand-in share the machine with it. Beside it,
in the same run: the same app with a commit per request (what group commit is worth), and Prometheus Alertmanager's own
intake, which keeps alerts in memory only, so it does less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvicorn
from aiohttp import web

from midwatch import results
from midwatch.cli.app import build_app
from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.model import Case, Diagnosis, Finding
from midwatch.copilot.store import Store
from midwatch.settings import CopilotSettings, Settings
from ports import free_port

CLIENTS = 16
SERVICES = 64
STORM = 10_000
LIMIT_S = 120
RESULTS = Path(__file__).resolve().parent.parent / "results" / "intake" / "intake.json"


def alert(name: str, service: str) -> dict[str, Any]:
    """One alert as Alertmanager describes it, of an ordinary size."""
    labels = {
        "alertname": name,
        "service": service,
        "severity": "warning",
        "namespace": "shop",
        "pod": f"{service}-7d9c5b6f4-x2v9k",
        "instance": "10.0.0.12:8080",
        "cluster": "eu-1",
    }
    return {
        "status": "firing",
        "labels": labels,
        "startsAt": "2026-01-02T03:04:05Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "annotations": {"summary": f"{name} on {service}", "description": "More than 5 % of requests fail."},
        "generatorURL": "http://prometheus.example:9090/graph?g0.expr=rate",
    }


def webhook(name: str, service: str) -> bytes:
    """The body of Alertmanager's webhook with one alert."""
    return orjson.dumps({"version": "4", "status": "firing", "receiver": "m", "alerts": [alert(name, service)]})


def log_push(service: str) -> bytes:
    """A log that gives the model something to read; no line of it would open an incident by itself."""
    lines = ["GET /cart 200", "volume /var/lib/data has 0 bytes left, writes are held back", "GET /cart 200"]
    values = [[str(time.time_ns() + number), line] for number, line in enumerate(lines)]
    return orjson.dumps({"streams": [{"stream": {"app": service}, "values": values}]})


def api_v2(name: str, service: str) -> bytes:
    """The body of Alertmanager's own intake with the same alert."""
    item = alert(name, service)
    return orjson.dumps([{key: item[key] for key in ("labels", "annotations", "startsAt", "generatorURL")}])


async def round_of(url: str, bodies: list[bytes], wanted: int) -> tuple[float, float]:
    """Post every body once from sixteen clients. (alerts per second, p99 in milliseconds)."""
    queue = iter(bodies)
    taken_ms: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for body in queue:
            started = time.perf_counter()
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                await answer.read()
                assert answer.status == wanted, f"{url} answered {answer.status}"
            taken_ms.append((time.perf_counter() - started) * 1000)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
        seconds = time.perf_counter() - started
    return len(bodies) / seconds, sorted(taken_ms)[int(0.99 * len(taken_ms))]


async def rounds(
    url: str, body: Callable[[str, str], bytes], wanted: int, arguments: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """One warm-up and then the rounds, each of alerts never seen before."""
    rates: list[float] = []
    slowest_ms: list[float] = []
    for number in range(arguments.rounds + 1):
        names = range(arguments.alerts if number else 200)
        bodies = [body(f"Alert{number}x{n}", f"service{n % SERVICES}") for n in names]
        rate, p99_ms = await round_of(url, bodies, wanted)
        if number:
            rates.append(rate)
            slowest_ms.append(p99_ms)
    return rates, slowest_ms


class ModelHost:
    """A stand-in that answers at once, with a value that fits any schema, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    async def complete(self, request: web.Request) -> web.Response:
        """Stream one chunk that fits the schema asked for."""
        self.calls += 1
        schema = (await request.json())["response_format"]["json_schema"]["schema"]
        chunk = {
            "model": "stand-in",
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            "choices": [{"delta": {"content": orjson.dumps(_fitting(schema)).decode()}, "finish_reason": "stop"}],
        }
        body = b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"
        return web.Response(body=body, content_type="text/event-stream")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve; gives the URL."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def _fitting(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {key: _fitting(inner) for key, inner in schema["properties"].items()}
    if schema["type"] == "array":
        return [_fitting(schema["items"])] * max(1, schema.get("minItems", 1))
    return "Something is wrong." if schema["type"] == "string" else 0


@asynccontextmanager
async def process(argv: list[str], ready_url: str, **environment: str) -> AsyncIterator[None]:
    """A server of its own, from ready to ended."""
    child = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, **environment}, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as session:
            while True:
                assert child.returncode is None, f"{argv[0]} ended at its start"
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(ready_url) as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.02)
        yield
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await child.wait()


class Instant:
    """A diagnoser that asks nobody: the ablation is about commits, not about models."""

    async def diagnose(self, case: Case) -> Finding:
        """Say `unknown` at once."""
        evidence = build_evidence(case, CopilotSettings().evidence_tokens)
        diagnosis = Diagnosis(
            category="unknown",
            severity="info",
            entity="unknown",
            summary="",
            confidence=0.0,
            calibrated=False,
            action="ask_person",
            citations=(),
            next_steps=(),
            provider="none",
            model="none",
            prompt_tokens=0,
            completion_tokens=0,
            cost_usd=0.0,
            ttft_ms=0.0,
            latency_ms=0.0,
        )
        return Finding(evidence=evidence, diagnosis=diagnosis)


def serve(port: int, max_batch: int, folder: str) -> None:
    """The app with a given number of requests per commit; runs in a process of its own."""
    settings = Settings(database_url=f"sqlite:///{folder}/midwatch.db")
    store = Store(settings.resolved_database_url, settings.copilot, max_batch=max_batch)
    app = build_app(settings, store, Instant())
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="error", proxy_headers=False)
    store.close()


async def measure_shipped(arguments: argparse.Namespace) -> tuple[list[float], list[float], list[float], list[float]]:
    """`midwatch app`: rate and p99 of new alerts; rate and model calls of storms of identical ones."""
    host = ModelHost()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as state:
        async with host.listening() as engine:
            argv = [sys.executable, "-m", "midwatch", "app", "--port", str(port), "--engine-url", engine]
            async with process(argv, f"{url}/healthz", MIDWATCH_STATE_DIR=state):
                rates, slowest_ms = await rounds(f"{url}/hooks/alertmanager", webhook, 202, arguments)
                await all_diagnosed(url)
                storm_rates: list[float] = []
                calls: list[float] = []
                for number in range(arguments.rounds):
                    before = host.calls
                    await round_of(f"{url}/loki/api/v1/push", [log_push(f"storm{number}")], 204)
                    bodies = [webhook("Storm", f"storm{number}")] * STORM
                    rate, _ = await round_of(f"{url}/hooks/alertmanager", bodies, 202)
                    await all_diagnosed(url)
                    storm_rates.append(rate)
                    calls.append(float(host.calls - before))
    return rates, slowest_ms, storm_rates, calls


async def all_diagnosed(url: str) -> None:
    """Wait until no incident waits any more."""
    async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/metrics") as answer:
                page = await answer.text()
            if (
                'midwatch_incidents{state="waiting"} 0.0' in page
                and 'midwatch_incidents{state="diagnosing"} 0.0' in page
            ):
                return
            await asyncio.sleep(0.1)


async def measure_batches(max_batch: int, arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """The same app with so many requests per commit."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as state:
        argv = [sys.executable, __file__, "--serve", str(port), "--max-batch", str(max_batch), "--folder", state]
        async with process(argv, f"http://127.0.0.1:{port}/healthz"):
            return await rounds(f"http://127.0.0.1:{port}/hooks/alertmanager", webhook, 202, arguments)


async def measure_alertmanager(arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Alertmanager's own intake of the same alerts."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as state:
        config = Path(state) / "alertmanager.yml"
        config.write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
        argv = [
            arguments.alertmanager,
            f"--config.file={config}",
            f"--storage.path={state}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ]
        async with process(argv, f"{url}/-/ready"):
            return await rounds(f"{url}/api/v2/alerts", api_v2, 200, arguments)


async def measure(arguments: argparse.Namespace) -> list[results.Row]:
    """All rows."""
    rates, slowest_ms, storm_rates, calls = await measure_shipped(arguments)
    shared, shared_ms = await measure_batches(512, arguments)
    alone, alone_ms = await measure_batches(1, arguments)
    peer: dict[str, Any] = {}
    peer_ms: dict[str, Any] = {}
    if arguments.alertmanager:
        their_rates, their_ms = await measure_alertmanager(arguments)
        peer = {"peer": "Alertmanager /api/v2/alerts (in memory, not durable)", "peer_samples": their_rates}
        peer_ms = {**peer, "peer_samples": their_ms}
    what = f"{arguments.alerts} new alerts a round over {SERVICES} services, one per request, {CLIENTS} clients"
    shared_peer = "one shared commit for what waits"
    return [
        results.row("durable intake", rates, "alerts/s", target=400, direction="at_least", note=what, **peer),
        results.row("durable intake, p99", slowest_ms, "ms", target=100, direction="at_most", note=what, **peer_ms),
        results.row(
            "model calls for 10,000 identical alerts",
            calls,
            "calls",
            target=1,
            direction="at_most",
            note="one alert per request, beside a log to read; the calls are counted at the model host",
        ),
        results.row("intake of identical alerts", storm_rates, "alerts/s", note="the storm above"),
        results.row(
            "ablation: one commit per request",
            alone,
            "alerts/s",
            peer=shared_peer,
            peer_samples=shared,
            note="same app with a diagnoser that asks nobody",
        ),
        results.row("ablation: one commit per request, p99", alone_ms, "ms", peer=shared_peer, peer_samples=shared_ms),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alerts", type=int, default=2000, help="alerts of one round")
    parser.add_argument("--alertmanager", help="path of prometheus-alertmanager, to measure beside us")
    parser.add_argument("--folder", help="folder for the databases; the disk under it is what is measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--max-batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.max_batch, arguments.folder)
        return
    rows = asyncio.run(measure(arguments))
    results.write(arguments.out, rows)
    print(results.table(rows))


if __name__ == "__main__":
    main()
