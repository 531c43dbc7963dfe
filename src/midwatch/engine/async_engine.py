"""The engine on a thread of its own, so that an event loop can serve many callers while steps run.

One thread owns the engine: it takes new requests and aborts between steps, steps while there is work, and sleeps on a
condition when there is none. Every step's outputs cross to the event loop in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from midwatch.engine.request import EngineStats, Output, SamplingParams
from midwatch.errors import MidwatchError, ProviderError

if TYPE_CHECKING:
    from midwatch.engine.engine import Engine
    from midwatch.engine.sequence import Sequence as EngineSequence

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
        self._arrivals: deque[EngineSequence] = deque()
        self._aborts: deque[int] = deque()
        self._streams: dict[int, _Stream] = {}
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
        self._fail_streams(ProviderError("The engine was closed.", "Start it again and repeat the request."))

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> AsyncGenerator[Output, None]:
        """Yield the outputs of one request until its `finish_reason` is set.

        The first `__anext__` raises `RequestError` for a request that cannot be served (400) or a full queue (429),
        and `ProviderError` if the engine has stopped. Closing the iterator, or cancelling the task that awaits it,
        aborts the request before the next step; use `contextlib.aclosing` where the loop may be left early.
        """
        self._check_alive()
        self.engine.check_room(len(self._streams))
        reserved = self.engine.next_request_id()
        stream: _Stream = asyncio.Queue()
        self._streams[reserved] = stream
        try:
            if params.json_schema is None:
                sequence = self.engine.prepare(prompt_ids, params, reserved)
            else:  # compiling a grammar takes milliseconds that no other caller should wait for
                sequence = await asyncio.to_thread(self.engine.prepare, prompt_ids, params, reserved)
            self._check_alive()
            self._send(arrival=sequence)
            while True:
                item = await stream.get()
                if isinstance(item, MidwatchError):
                    raise item
                if item.finish_reason is not None:
                    self._streams.pop(reserved, None)
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            if self._streams.pop(reserved, None) is not None:
                self._send(abort=reserved)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing or self._thread is None:
            raise ProviderError("The engine is not running.", "Start it before sending requests.")

    def _send(self, *, arrival: EngineSequence | None = None, abort: int | None = None) -> None:
        with self._wake:
            if arrival is not None:
                self._arrivals.append(arrival)
            if abort is not None:
                self._aborts.append(abort)
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
        """Wait for work; hand arrivals and aborts to the engine. False when closing."""
        with self._wake:
            while not (self._closing or self._arrivals or self._aborts or self.engine.has_work):
                self._wake.wait()
            arrivals, self._arrivals = self._arrivals, deque()
            aborts, self._aborts = self._aborts, deque()
        for sequence in arrivals:
            self.engine.admit(sequence)
        for request_id in aborts:
            self.engine.abort(request_id)
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
