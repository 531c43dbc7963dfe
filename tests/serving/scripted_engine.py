"""A small engine that says what a test tells it, one step at a time, and a thread that serves it with uvicorn."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from midwatch.engine.blocks import BlockMap, BlockState
from midwatch.engine.request import EngineStats, FinishReason, Output, SamplingParams, TokenLogprob, TopLogprob
from midwatch.errors import MidwatchError, ModelError, RequestError
from midwatch.serving.app import create_app
from midwatch.serving.host import OpenModel, Served


class ScriptedTokenizer:
    """Letters are ids; conversations are their contents."""

    vocab_size = 500

    def encode(self, text: str) -> list[int]:
        return [min(ord(letter), 499) for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode("".join(turn["content"] for turn in messages))


@dataclass
class ScriptedEngine:
    """Yields each word of `script` as one step of every answer. An exception in the script is raised there.

    With `paced`, a step waits for `release()`. `closed` is set when a request's generator has ended, however it ended.
    A prompt that begins with "!" is refused with 400. `last_reason` ends every answer. Request number `fail_at` fails
    with `failure`.
    """

    script: tuple[str | Exception, ...] = ("one ", "two ", "three")
    paced: bool = False
    healthy: bool = True
    last_reason: FinishReason = "stop"
    adapter_dir: Path | None = None
    waiting: int = 0
    fail_at: int = 0
    failure: Exception | None = None
    steps: int = 0
    seen: list[tuple[Sequence[int], SamplingParams]] = field(default_factory=list)
    options: list[dict[str, object]] = field(default_factory=list)
    adapters: dict[str, Path] = field(default_factory=dict)
    blocks: list[BlockState] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    in_step: threading.Event = field(default_factory=threading.Event)
    _permits: asyncio.Semaphore | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def stats(self) -> EngineStats:
        return EngineStats(
            running=0 if self.closed.is_set() else len(self.seen),
            waiting=self.waiting,
            steps_total=self.steps,
            prompt_tokens_total=40,
            generation_tokens_total=20,
            kv_blocks_total=8,
            kv_blocks_free=6,
            kv_block_size=16,
            kv_slots_empty=5,
            adapters=tuple(self.adapters),
        )

    def block_map(self) -> BlockMap:
        return BlockMap(block_size=16, num_blocks=len(self.blocks), step=self.steps, blocks=tuple(self.blocks))

    def release(self, steps: int = 1) -> None:
        """Let so many steps go on; from any thread."""
        assert self._loop is not None
        for _ in range(steps):
            self._loop.call_soon_threadsafe(self._permits.release)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, **options: object
    ) -> AsyncGenerator[Output, None]:
        self._loop, self._permits = asyncio.get_running_loop(), asyncio.Semaphore(0)
        self.seen.append((prompt_ids, params))
        self.options.append(options)
        if self.failure is not None and len(self.seen) == self.fail_at:
            raise self.failure
        if prompt_ids[:1] == [ord("!")]:
            raise RequestError("The prompt is bad.", param="prompt")
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
                for index in range(params.n):
                    yield Output(
                        request_id=1,
                        index=index,
                        text_delta=item,
                        token_ids=(number,),
                        logprobs=(_logprob(item),) if params.logprobs is not None else (),
                        finish_reason=self.last_reason if last else None,
                        prompt_tokens=len(prompt_ids),
                        completion_tokens=number + 1,
                        cached_tokens=2,
                        prompt_logprobs=self._scored(prompt_ids, params) if number == index == 0 else None,
                    )
        finally:
            self.closed.set()

    async def embed(
        self, prompt_ids: Sequence[int], pooling: str = "mean", *, adapter: str | None = None, normalize: bool = True
    ) -> Output:
        self.options.append({"pooling": pooling, "adapter": adapter, "normalize": normalize})
        return Output(
            request_id=1,
            text_delta="",
            token_ids=(),
            finish_reason="stop",
            prompt_tokens=len(prompt_ids),
            completion_tokens=0,
            embedding=(float(sum(prompt_ids)), 0.5, -1.0),
        )

    async def load_adapter(self, name: str, path: Path) -> None:
        if not path.is_dir():
            raise ModelError(f"{path.name} is for another base.", "Choose one for this model.")
        if name in self.adapters:
            raise RequestError(f"{name} is loaded.", "Unload it first.", status=409)
        self.adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        if name not in self.adapters:
            raise RequestError(f"{name} is not loaded.", status=404)
        del self.adapters[name]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Served]:
        yield Served(engine=self, tokenizer=ScriptedTokenizer(), max_model_len=100, adapter_dir=self.adapter_dir)

    @staticmethod
    def _scored(prompt_ids: Sequence[int], params: SamplingParams) -> tuple[TokenLogprob | None, ...] | None:
        if params.prompt_logprobs is None:
            return None
        return (None, *(_logprob(chr(token_id)) for token_id in prompt_ids[1:]))


def _logprob(text: str) -> TokenLogprob:
    rival = TopLogprob(token_id=1, token=b"else", logprob=-2.0)
    own = TopLogprob(token_id=ord(text[0]), token=text.encode(), logprob=-0.5)
    return TokenLogprob(token_id=ord(text[0]), token=text.encode(), logprob=-0.5, top=(own, rival))


@contextmanager
def serve(
    open_model: OpenModel, failures: list[MidwatchError] | None = None, *, name: str = "scripted"
) -> Iterator[str]:
    """Serve on a free port from a thread; yields the base URL."""
    app = create_app(name, open_model, on_failed=(failures if failures is not None else []).append)
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
