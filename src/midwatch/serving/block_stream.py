"""`GET /engine/blocks`: what every block of the KV pool holds, as it changes.

The map goes out in columns, one entry per block: `states` is a text with a letter each (f free, c cached, u used),
`owners` lists the request ids that hold a block, `filled` its places that hold a token, `age_steps` since when.
As server-sent events: the map at once, and again at most every `interval_ms` (500) when it has changed.
`?once=1` answers with one JSON object.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from midwatch.errors import RequestError
from midwatch.serving.bodies import reply
from midwatch.serving.host import Host

if TYPE_CHECKING:
    from midwatch.engine.blocks import BlockMap

SLOWEST_MS = 60_000
QUICKEST_MS = 50
SILENCE_S = 15.0
"""Longest time without a byte, so that proxies keep the connection open."""


class BlockRoutes:
    """Handler for one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def blocks(self, request: Request) -> Response:
        """`GET /engine/blocks`."""
        served, _ = self._host.ready()
        interval_ms = _interval_ms(request.query_params.get("interval_ms", "500"))
        if request.query_params.get("once") in {"1", "true"}:
            return reply(shown(await asyncio.to_thread(served.engine.block_map)))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(interval_ms / 1e3), media_type="text/event-stream", headers=headers)

    async def _events(self, interval_s: float) -> AsyncIterator[bytes]:
        sent: dict[str, Any] | None = None
        silent_s = 0.0
        while (served := self._host.served) is not None and not self._host.draining:
            now = shown(await asyncio.to_thread(served.engine.block_map))
            if sent is None or _differ(sent, now):
                sent, silent_s = now, 0.0
                yield b"event: blocks\ndata: " + orjson.dumps(now) + b"\n\n"
            elif silent_s >= SILENCE_S:
                silent_s = 0.0
                yield b": nothing changed\n\n"
            await asyncio.sleep(interval_s)
            silent_s += interval_s


def shown(block_map: BlockMap) -> dict[str, Any]:
    """The map in columns."""
    blocks = block_map.blocks
    return {
        "block_size": block_map.block_size,
        "num_blocks": block_map.num_blocks,
        "step": block_map.step,
        "states": "".join(block.state[0] for block in blocks),
        "owners": [block.owners for block in blocks],
        "filled": [block.filled for block in blocks],
        "age_steps": [block.age_steps for block in blocks],
    }


def _differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True if any block holds something else; growing older is no change."""
    return any(one[column] != other[column] for column in ("states", "owners", "filled"))


def _interval_ms(text: str) -> int:
    if text.isascii() and text.isdigit() and QUICKEST_MS <= int(text[:9]) <= SLOWEST_MS:
        return int(text)
    raise RequestError(
        f"interval_ms is {text[:40]!r}; allowed is a whole number from {QUICKEST_MS} to {SLOWEST_MS}.",
        param="interval_ms",
    )
