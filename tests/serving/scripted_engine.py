"""A small engine that says what a test tells it, one step at a time, and a thread that serves it with uvicorn."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import uvicorn

from midwatch.engine.request import EngineStats, Output, SamplingParams
from midwatch.errors import MidwatchError
from midwatch.serving.app import create_app
from midwatch.serving.host import OpenModel, Served


@dataclass
class ScriptedEngine:
    """Yields each word of `script` as one step. An exception in the script is raised there.

    With `paced`, a step waits for `release()`. `closed` is set when a request's generator has ended, however it ended.
    """

    script: tuple[str | Exception, ...] = ("one ", "two ", "three")
    paced: bool = False
    healthy: bool = True
    steps: int = 0
    seen: list[tuple[Sequence[int], SamplingParams]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    in_step: threading.Event = field(default_factory=threading.Event)
    _permits: asyncio.Semaphore | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def stats(self) -> EngineStats:
        return EngineStats(running=0 if self.closed.is_set() else len(self.seen), steps_total=self.steps)

    def release(self, steps: int = 1) -> None:
        """Let so many steps go on; from any thread."""
        assert self._loop is not None
        for _ in range(steps):
            self._loop.call_soon_threadsafe(self._permits.release)

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> AsyncGenerator[Output, None]:
        self._loop, self._permits = asyncio.get_running_loop(), asyncio.Semaphore(0)
        self.seen.append((prompt_ids, params))
        try:
            for number, item in enumerate(self.script):
                if self.paced:
                    self.in_step.set()
                    await self._permits.acquire()
                if isinstance(item, Exception):
                    self.healthy = not isinstance(item, MidwatchError) or self.healthy
                    raise item
                self.steps += 1
                last = number == len(self.script) - 1
                yield Output(
                    request_id=1,
                    text_delta=item,
                    token_ids=(number,),
                    finish_reason="stop" if last else None,
                    prompt_tokens=len(prompt_ids),
                    completion_tokens=number + 1,
                )
        finally:
            self.closed.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Served]:
        yield Served(
            generator=self, chat_prompt=self._chat, encode=lambda text: list(range(len(text))), max_model_len=100
        )

    @staticmethod
    def _encode(text: str) -> list[int]:
        return list(range(len(text)))

    @staticmethod
    def _chat(turns: list[dict[str, str]]) -> list[int]:
        return list(range(sum(len(turn["content"]) for turn in turns)))


@contextmanager
def serve(open_model: OpenModel, failures: list[MidwatchError] | None = None) -> Iterator[str]:
    """Serve on a free port from a thread; yields the base URL."""
    app = create_app("scripted", open_model, on_failed=(failures if failures is not None else []).append)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
