"""How long does the page take? A list of 1,000 incidents, one with a log of 50,000 lines, a change to an open page.

    python bench/dashboard.py [--rounds 7]

Over the real store (SQLite), through the real HTTP server on this machine. Writes results/dashboard/dashboard.json.
"""

from __future__ import annotations

import argparse
import asyncio
import runpy
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from starlette.applications import Starlette

from midwatch import results
from midwatch.copilot import codec
from midwatch.copilot.claims import Outcome
from midwatch.copilot.model import Event, LogLine
from midwatch.copilot.store import Store
from midwatch.dashboard.app import routes
from midwatch.settings import CopilotSettings, Settings

ROOT = Path(__file__).resolve().parent.parent
INCIDENTS = 1_000
LOG_LINES = 50_000


async def fill(store: Store, sample: dict[str, Any]) -> int:
    """1,000 diagnosed incidents and one with a long log; gives the id of that one."""
    # One of the twelve cites a line of 270 kB; a thousand lists of such would measure that line.
    found = [view.finding for view in sample["twelve"]() if view.finding is not None and view.service != "billing"]
    alerts = [
        Event(source="text", fingerprint=f"f{n}", status="firing", service=f"service-{n}", title=f"Alert {n}")
        for n in range(INCIDENTS - 1)
    ]
    lines = tuple(
        LogLine(text=f"2026-11-23T03:00:00Z app[{n}] INFO request {n} took {n % 90} ms") for n in range(LOG_LINES)
    )
    alerts.append(
        Event(source="text", fingerprint="long", status="firing", service="long", title="Long log", lines=lines)
    )
    for start in range(0, len(alerts), 100):
        await store.accept(alerts[start : start + 100])
    longest = 0
    while (claim := await store.claim()) is not None:
        texts = store.case(claim.incident_id).lines
        longest = claim.incident_id if texts else longest
        finding = sample["finding"](texts, [20_000, 40_000], category="unknown", summary="Long.") if texts else None
        await store.finish(
            Outcome(
                claim=claim,
                finding=finding or found[claim.incident_id % len(found)],
                lines=codec.pack_lines(texts),
                messages=(),
            )
        )
    return longest


@asynccontextmanager
async def serve(store: Store, settings: Settings) -> AsyncIterator[str]:
    """The dashboard's routes on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = Starlette(routes=routes(store, settings))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


async def timed(session: aiohttp.ClientSession, url: str, rounds: int) -> tuple[list[float], int]:
    """Milliseconds of each whole answer after one to warm up, and its size in bytes."""
    samples: list[float] = []
    size = 0
    for _ in range(rounds + 1):
        started = time.perf_counter()
        async with session.get(url) as answer:
            answer.raise_for_status()
            size = len(await answer.read())
        samples.append((time.perf_counter() - started) * 1000)
    return samples[1:], size


async def change_ms(session: aiohttp.ClientSession, store: Store, url: str, rounds: int) -> list[float]:
    """Milliseconds from an alert that is accepted to its row on an open stream."""
    samples: list[float] = []
    async with session.get(url + "/events") as answer:
        while b"</hx-partial>" not in await answer.content.readline():
            pass
        for n in range(rounds):
            title = f"Fresh-{n}"
            started = time.perf_counter()
            await store.accept([Event(source="text", fingerprint=title, status="firing", service=title, title=title)])
            while title.encode() not in await answer.content.readline():
                pass
            samples.append((time.perf_counter() - started) * 1000)
    return samples


async def measure(rounds: int) -> list[results.Row]:
    """All rows."""
    sample = runpy.run_path(str(ROOT / "tests" / "dashboard" / "sample_incidents.py"), run_name="sample_incidents")
    with tempfile.TemporaryDirectory() as folder:
        copilot = CopilotSettings(settle_s=0, settle_max_s=0)
        settings = Settings(state_dir=Path(folder), copilot=copilot)
        store = Store(f"sqlite:///{folder}/midwatch.db", copilot)
        longest = await fill(store, sample)
        async with serve(store, settings) as url, aiohttp.ClientSession(read_bufsize=2**22) as session:
            whole, whole_bytes = await timed(session, f"{url}/?limit={INCIDENTS}", rounds)
            usual, usual_bytes = await timed(session, f"{url}/", rounds)
            one, one_bytes = await timed(session, f"{url}/incidents/{longest}", rounds)
            change = await change_ms(session, store, url, rounds)
        store.close()
    return [
        results.row(
            "list of 1,000 incidents",
            whole,
            "ms",
            target=200,
            direction="at_most",
            note="from the request to the last byte, store and rendering included",
            extra={"bytes": whole_bytes},
        ),
        results.row("list of 100 incidents (the usual page)", usual, "ms", extra={"bytes": usual_bytes}),
        results.row(
            "incident with a log of 50,000 lines",
            one,
            "ms",
            target=200,
            direction="at_most",
            extra={"bytes": one_bytes},
        ),
        results.row(
            "an accepted alert to its row on an open page",
            change,
            "ms",
            target=1_000,
            direction="at_most",
            note="durable commit included; messages on one stream are at least 400 ms apart",
        ),
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "dashboard" / "dashboard.json")
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.rounds))
    results.write(arguments.out, rows)
    print(results.table(rows))


if __name__ == "__main__":
    main()
