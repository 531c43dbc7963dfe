"""Measure any OpenAI-compatible server from outside: so many clients at a time, each its next request when it may.

Clients stream `/v1/completions` with prompts of random ids and count tokens by what the server says they were. Ours and
vLLM understand `ignore_eos`, so that answers have the length that was asked for. The engine itself is not loaded.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from midwatch.engine.percentiles import Percentiles
from midwatch.errors import ProviderError

LOWEST_ID, HIGHEST_ID = 1000, 9999
"""Ids that every vocabulary of today has, and that are plain text in it."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the clients saw. Times are of answers that came whole."""

    url: str
    model: str
    clients: int
    requests: int
    failed: int
    first_failure: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    requests_per_s: float
    output_tokens_per_s: float
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles
    e2e_ms: Percentiles


@dataclass(kw_only=True)
class _Seen:
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0


async def measure(
    url: str,
    *,
    clients: int,
    requests: int,
    prompt_tokens: tuple[int, int],
    new_tokens: tuple[int, int],
    model: str | None = None,
    shared_prefix: int = 0,
    seed: int = 0,
    timeout_s: float = 600.0,
) -> Served:
    """Send `requests` from `clients` that each wait for one answer before they send the next.

    `url` may end in `/v1`. Raises `ProviderError` if the server cannot be reached, or if no answer came whole.
    """
    base = url.rstrip("/").removesuffix("/v1")
    source = random.Random(seed)
    prefix = _ids(source, shared_prefix)
    bodies = [
        {
            "prompt": prefix + _ids(source, source.randint(*prompt_tokens)),
            "max_tokens": source.randint(*new_tokens),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _ in range(requests)
    ]
    seen = _Seen()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout_s)) as session:
        name = model or await _served_model(session, base)
        waiting = [body | {"model": name} for body in reversed(bodies)]
        started = time.perf_counter()
        await asyncio.gather(*(_client(session, base, waiting, seen) for _ in range(min(clients, requests))))
        seconds = time.perf_counter() - started
    if not seen.e2e_ms:
        raise ProviderError(f"No answer came whole; the first failure: {seen.failures[0]}", "See the server's log.")
    return Served(
        url=base,
        model=name,
        clients=clients,
        requests=requests,
        failed=len(seen.failures),
        first_failure=seen.failures[0] if seen.failures else "",
        prompt_tokens=seen.prompt_tokens,
        new_tokens=seen.new_tokens,
        seconds=seconds,
        requests_per_s=len(seen.e2e_ms) / seconds,
        output_tokens_per_s=seen.new_tokens / seconds,
        ttft_ms=Percentiles.of(seen.ttft_ms),
        tpot_ms=Percentiles.of(seen.tpot_ms),
        itl_ms=Percentiles.of(seen.itl_ms),
        e2e_ms=Percentiles.of(seen.e2e_ms),
    )


async def _served_model(session: aiohttp.ClientSession, base: str) -> str:
    try:
        async with session.get(f"{base}/v1/models") as response:
            response.raise_for_status()
            name: str = orjson.loads(await response.read())["data"][0]["id"]
            return name
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
        raise ProviderError(
            f"{base}/v1/models did not answer with a model: {error}.", "Start a server, or name another URL."
        ) from None


async def _client(session: aiohttp.ClientSession, base: str, waiting: list[dict[str, Any]], seen: _Seen) -> None:
    while waiting:
        try:
            await _one(session, base, waiting.pop(), seen)
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
            seen.failures.append(f"{type(error).__name__}: {str(error)[:300]}")


async def _one(session: aiohttp.ClientSession, base: str, body: dict[str, Any], seen: _Seen) -> None:
    """One streamed answer, timed; raises if it is refused or breaks off."""
    started = time.perf_counter()
    times: list[float] = []
    usage: dict[str, int] | None = None
    async with session.post(f"{base}/v1/completions", json=body) as response:
        if response.status != 200:
            raise ValueError(f"status {response.status}: {(await response.text())[:200]}")
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = orjson.loads(line[6:])
            if "error" in event:
                raise ValueError(str(event["error"])[:200])
            usage = event.get("usage") or usage
            if event["choices"]:
                times.append(time.perf_counter())
    if usage is None or not times:
        raise ValueError("the stream ended without token counts")
    tokens = usage["completion_tokens"]
    seen.prompt_tokens += usage["prompt_tokens"]
    seen.new_tokens += tokens
    seen.ttft_ms.append((times[0] - started) * 1e3)
    seen.e2e_ms.append((times[-1] - started) * 1e3)
    seen.itl_ms += [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
    if tokens > 1:
        seen.tpot_ms.append((times[-1] - times[0]) * 1e3 / (tokens - 1))


def _ids(source: random.Random, count: int) -> list[int]:
    return [source.randint(LOWEST_ID, HIGHEST_ID) for _ in range(count)]
