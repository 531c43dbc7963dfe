"""The engine on a thread of its own, so that an event loop can serve many callers while steps run.

One thread owns the engine: it takes new requests and aborts between steps, steps while there is work, and sleeps on a
condition when there is none. Every step's outputs cross to the event loop in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from midwatch.engine.request import EngineStats, Output, Pooling, SamplingParams
from midwatch.errors import MidwatchError, ProviderError

if TYPE_CHECKING:
    from midwatch.engine.blocks import BlockMap
    from midwatch.engine.engine import Engine

_T = TypeVar("_T")
_Stream = asyncio.Queue["Output | MidwatchError"]


class AsyncEngine:
    """Serve an `Engine` to one event loop. `start` it, `generate` from any number of tasks, `aclose` it.

    If a step raises, every request in flight ends with a `ProviderError` that says why, `healthy` becomes False, and
    later requests are refused the same way: the state of a half-done step is not trusted.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._orders: deque[Callable[[], object]] = deque()
        self._streams: dict[int, _Stream] = {}
        self._promises: set[asyncio.Future[None]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._failure: MidwatchError | None = None

    @property
    def healthy(self) -> bool:
        """True while the thread runs and no step has failed."""
        return self._failure is None and self._thread is not None and self._thread.is_alive()

    @property
    def failure(self) -> MidwatchError | None:
        """Why the engine stopped, if a step failed."""
        return self._failure

    def stats(self) -> EngineStats:
        """Counters and gauges for `/metrics`; safe from any thread."""
        return self.engine.stats()

    async def start(self) -> None:
        """Start the thread. The event loop that awaits this is the one that `generate` serves."""
        assert self._thread is None, "started twice"
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="midwatch-engine", daemon=True)
        self._thread.start()

    async def aclose(self) -> None:
        """Stop after the step in progress. Requests in flight end with a `ProviderError`. May be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self.engine.close()
        self._fail_streams(ProviderError("The engine was closed.", "Start it again and repeat the request."))

    async def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        adapter: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[Output, None]:
        """Yield the outputs of one request until each of its answers has a `finish_reason`; `Output.index` tells which.

        The first `__anext__` raises `RequestError` for a request that cannot be served (400), an unknown adapter (404)
        or a full queue (429), and `ProviderError` if the engine has stopped. Closing the iterator, or cancelling the
        task that awaits it, aborts the request before the next step; use `contextlib.aclosing` where the loop may be
        left early.
        """
        options = {"adapter": adapter, "priority": priority, "deadline_s": deadline_s}
        async with contextlib.aclosing(self._serve(prompt_ids, params, options)) as outputs:
            async for output in outputs:
                yield output

    async def embed(
        self,
        prompt_ids: Sequence[int],
        pooling: Pooling = "mean",
        *,
        adapter: str | None = None,
        normalize: bool = True,
    ) -> Output:
        """One output whose `embedding` is the pooled hidden state after the final norm, of length 1 if normalized."""
        options = {"adapter": adapter, "pooling": pooling}
        async with contextlib.aclosing(self._serve(prompt_ids, SamplingParams(), options)) as outputs:
            async for output in outputs:
                last = output
        if last.embedding is None or not normalize:
            return last
        length = math.sqrt(sum(value * value for value in last.embedding)) or 1.0
        return replace(last, embedding=tuple(value / length for value in last.embedding))

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter between two steps. Raises `RequestError` (409) or `ModelError`."""
        await self._between_steps(lambda: self.engine.load_adapter(name, path))

    async def unload_adapter(self, name: str) -> None:
        """Refuse an adapter to new requests. Raises `RequestError` (404) if it is not loaded."""
        await self._between_steps(lambda: self.engine.unload_adapter(name))

    def block_map(self) -> BlockMap:
        """Every KV block and who holds it; safe from any thread."""
        return self.engine.block_map()

    async def _serve(
        self, prompt_ids: Sequence[int], params: SamplingParams, options: dict[str, Any]
    ) -> AsyncGenerator[Output, None]:
        self._check_alive()
        self.engine.check_room(len(self._streams))
        reserved = self.engine.next_request_id()
        stream: _Stream = asyncio.Queue()
        self._streams[reserved] = stream
        left = params.n
        try:
            if params.is_closed:  # compiling a grammar takes milliseconds that no other caller should wait for
                sequence = await asyncio.to_thread(self.engine.prepare, prompt_ids, params, reserved, **options)
            else:
                sequence = self.engine.prepare(prompt_ids, params, reserved, **options)
            self._check_alive()
            self._order(lambda: self.engine.admit(sequence))
            while left:
                item = await stream.get()
                if isinstance(item, MidwatchError):
                    raise item
                left -= item.finish_reason is not None
                if not left:
                    self._streams.pop(reserved, None)
                yield item
        finally:
            if self._streams.pop(reserved, None) is not None:
                self._order(lambda: self.engine.abort(reserved))

    async def _between_steps(self, call: Callable[[], None]) -> None:
        self._check_alive()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def run() -> None:
            try:
                call()
            except MidwatchError as error:
                self._on_loop(lambda why: _settle(done, why), error)
            else:
                self._on_loop(lambda why: _settle(done, why), None)

        self._promises.add(done)
        try:
            self._order(run)
            await done
        finally:
            self._promises.discard(done)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing or self._thread is None:
            raise ProviderError("The engine is not running.", "Start it before sending requests.")

    def _order(self, order: Callable[[], object]) -> None:
        """Have the engine's thread do something before its next step."""
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def _run(self) -> None:
        try:
            self.engine.bind_thread()
            self.engine.warm_up()
            while self._take_orders():
                outputs = self.engine.step()
                if outputs:
                    self._on_loop(self._deliver, outputs)
        except Exception as error:  # the thread's last words: whatever broke a step must reach the callers
            self._failure = ProviderError(
                f"The engine stopped because a step failed: {type(error).__name__}: {str(error)[:300]}",
                "Restart it; if this repeats with the same request, report it.",
            )
            self._failure.__cause__ = error
            self._on_loop(self._fail_streams, self._failure)

    def _take_orders(self) -> bool:
        """Wait for work; carry out what was ordered since the last step. False when closing."""
        with self._wake:
            while not (self._closing or self._orders or self.engine.has_work):
                self._wake.wait()
            orders, self._orders = self._orders, deque()
        for order in orders:
            order()
        return not self._closing

    def _on_loop(self, call: Callable[[_T], None], argument: _T) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed without aclose: nobody is left to tell
            self._loop.call_soon_threadsafe(call, argument)

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put_nowait(output)

    def _fail_streams(self, error: MidwatchError) -> None:
        for stream in self._streams.values():
            stream.put_nowait(error)
        for promise in self._promises:
            _settle(promise, error)


def _settle(done: asyncio.Future[None], error: MidwatchError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
