"""One request on the engine: run it, send what comes, and stop it within one step when the caller hangs up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from midwatch.engine.request import EngineStats, Output, SamplingParams
from midwatch.errors import MidwatchError, ProviderError
from midwatch.serving.answers import Json, Shape
from midwatch.serving.errors import body_of, response_to
from midwatch.serving.metrics import Metrics

Prompt = Callable[[], Awaitable[Sequence[int]]]
"""Gives the token ids of a prompt; may raise `RequestError`."""


class Generator(Protocol):
    """What serving needs of the engine; `AsyncEngine` is it."""

    @property
    def healthy(self) -> bool:
        """True while requests can be served."""

    def stats(self) -> EngineStats:
        """Counters and gauges."""

    def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> AsyncGenerator[Output, None]:
        """The outputs of one request; closing the generator aborts it."""


@dataclass(kw_only=True)
class Generation:
    """An ASGI response that is made while it is sent.

    `prompt` gives the prompt's token ids; it runs after the first look at whether the caller is still there. Until the
    first output the status is open, so that a refusal is an ordinary error response; after it, a failure is an event.
    `on_dead` is called when the engine has died under the request.
    """

    generator: Generator
    prompt: Prompt
    params: SamplingParams
    shape: Shape
    stream: bool
    metrics: Metrics
    on_dead: Callable[[], None]
    received_at: float = field(default_factory=time.perf_counter)
    _counted: bool = field(default=False, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the caller leaves first. Cancelling this stops the engine's work too."""
        work = asyncio.ensure_future(self._answer(scope, receive, send))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered = work.done()
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if answered:
            work.result()
        else:
            self._finish("abort")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            prompt_ids = await self.prompt()
            async with aclosing(self._outputs(prompt_ids)) as outputs:
                await (self._send_events if self.stream else self._send_whole)(outputs, send_and_note)
        except MidwatchError as error:
            self._finish("error")
            if not self.generator.healthy:
                self.on_dead()
            if not started:
                await response_to(error)(scope, receive, send)
                return
            await send(_body(_sse(body_of(error)), more=True))
            await send(_body(b"", more=False))

    async def _send_whole(self, outputs: AsyncGenerator[Output, None], send: Send) -> None:
        collected = [output async for output in outputs]
        response = Response(orjson.dumps(self.shape.whole(collected)), media_type="application/json")
        await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        await send(_body(bytes(response.body), more=False))

    async def _send_events(self, outputs: AsyncGenerator[Output, None], send: Send) -> None:
        last: Output | None = None
        async for output in outputs:
            events = [self.shape.event(output)]
            if last is None:
                await send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
                events.insert(0, self.shape.opening())
            last = output
            if data := b"".join(_sse(event) for event in events if event is not None):
                await send(_body(data, more=True))
        assert last is not None, "`_outputs` ends with an output or raises"
        usage = self.shape.usage_event(last)
        await send(_body((_sse(usage) if usage else b"") + b"data: [DONE]\n\n", more=True))
        await send(_body(b"", more=False))

    async def _outputs(self, prompt_ids: Sequence[int]) -> AsyncGenerator[Output, None]:
        """The engine's outputs, with their times observed; `ProviderError` if they end without a reason."""
        before = None
        async with aclosing(self.generator.generate(prompt_ids, self.params)) as outputs:
            async for output in outputs:
                now = time.perf_counter()
                if before is None:
                    self.metrics.first_token(now - self.received_at)
                else:
                    self.metrics.next_token(now - before)
                before = now
                if output.finish_reason == "error":
                    raise ProviderError("The grammar came to a dead end in this answer.", "Simplify the schema.")
                if output.finish_reason is not None:
                    self._finish(output.finish_reason, output.prompt_tokens, output.completion_tokens)
                yield output
                if output.finish_reason is not None:
                    return
        raise ProviderError("The engine ended the answer without a reason.", "Send the request again.")

    def _finish(self, reason: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Count the request's end, once."""
        if not self._counted:
            self._counted = True
            seconds = time.perf_counter() - self.received_at
            self.metrics.finished(reason, seconds, prompt_tokens, completion_tokens)


_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def _hung_up(receive: Receive) -> None:
    """Return when the caller has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _sse(event: Json) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
