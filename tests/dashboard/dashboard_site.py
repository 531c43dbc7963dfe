"""A real server over a reader in memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import uvicorn
from sample_incidents import MemoryReader
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from midwatch.dashboard.app import routes
from midwatch.settings import Settings


@dataclass
class Site:
    """The page, served."""

    reader: MemoryReader
    session: aiohttp.ClientSession
    url: str

    async def get(self, path: str, **options: object) -> tuple[aiohttp.ClientResponse, str]:
        """The answer and its text; redirects are not followed."""
        async with self.session.get(self.url + path, allow_redirects=False, **options) as answer:
            return answer, await answer.text()


async def serve(reader: MemoryReader, settings: Settings, *others: BaseRoute) -> AsyncIterator[Site]:
    """Serve the dashboard's routes (and others), on a free port, until the test is over."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = Starlette(routes=[*others, *routes(reader, settings)])
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        async with aiohttp.ClientSession() as session:
            yield Site(reader, session, f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.should_exit = True
        await task
