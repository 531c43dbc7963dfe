"""One request on the engine: run it, send what comes, and stop it within one step when the caller hangs up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from midwatch.engine.request import Output, SamplingParams
from midwatch.errors import MidwatchError, ProviderError, RequestError
from midwatch.serving.answers import Json, Outputs, Shape, Usage
from midwatch.serving.errors import DeadEndError, DeadlineError, body_of, response_to

if TYPE_CHECKING:
    from midwatch.serving.host import Host, Served

Prompts = Callable[[], Awaitable[Sequence[Sequence[int]]]]
"""Gives the token ids of each prompt; may raise `RequestError`."""


@dataclass(kw_only=True)
class Generation:
    """An ASGI response that is made while it is sent.

    `prompts` gives the prompts' token ids; it runs after the first look at whether the caller is still there. Until the
    first output the status is open, so that a refusal is an ordinary error response; after it, a failure is an event.
    An answer whose deadline passes is such a failure: what is cut must not look like what is whole.
    """

    host: Host
    served: Served
    prompts: Prompts
    params: SamplingParams
    shape: Shape
    stream: bool
    adapter: str | None = None
    priority: int = 0
    timeout_s: float | None = None
    received_at: float = field(default_factory=time.perf_counter)
    _counted: bool = field(default=False, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the caller leaves first. Cancelling this stops the engine's work too."""
        with self.host.serving(self.adapter):
            if not await until_hung_up(receive, self._answer(scope, receive, send)):
                self._finish("abort")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            prompts = await self.prompts()
            async with aclosing(self._outputs(prompts)) as outputs:
                await (self._send_events if self.stream else self._send_whole)(outputs, send_and_note)
        except MidwatchError as error:
            self._finish("deadline" if isinstance(error, DeadlineError) else "error")
            if not self.served.engine.healthy:
                self.host.died()
            if not started:
                await response_to(error, self.host.retry_after_s())(scope, receive, send)
                return
            await send(_body(_sse(body_of(error)), more=True))
            await send(_body(b"", more=False))

    async def _send_whole(self, outputs: AsyncGenerator[tuple[int, Output], None], send: Send) -> None:
        collected: Outputs = {}
        usage = Usage(self.params.n)
        async for choice, output in outputs:
            collected.setdefault(choice, []).append(output)
            usage.note(choice, output)
        response = Response(orjson.dumps(self.shape.whole(collected, usage)), media_type="application/json")
        await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        await send(_body(bytes(response.body), more=False))

    async def _send_events(self, outputs: AsyncGenerator[tuple[int, Output], None], send: Send) -> None:
        usage = Usage(self.params.n)
        started = False
        async for choice, output in outputs:
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
            usage.note(choice, output)
            if data := b"".join(map(_sse, self.shape.events(choice, output))):
                await send(_body(data, more=True))
        counts = self.shape.usage_event(usage)
        await send(_body((_sse(counts) if counts else b"") + b"data: [DONE]\n\n", more=True))
        await send(_body(b"", more=False))

    async def _outputs(self, prompts: Sequence[Sequence[int]]) -> AsyncGenerator[tuple[int, Output], None]:
        """Choice and output, with times observed, until every choice has its reason; counts the request's end."""
        times: dict[int, _Times] = {}
        usage = Usage(self.params.n)
        last_reason = "stop"
        async with aclosing(self._of_all(prompts)) as outputs:
            async for choice, output in outputs:
                if output.finish_reason == "error":
                    raise DeadEndError(closed=self.params.is_closed)
                if output.finish_reason == "deadline":
                    raise DeadlineError(time.perf_counter() - self.received_at)
                self._observe(times.setdefault(choice, _Times(self.received_at)), output)
                usage.note(choice, output)
                last_reason = output.finish_reason or last_reason
                yield choice, output
        self._finish(last_reason, usage)

    async def _of_all(self, prompts: Sequence[Sequence[int]]) -> AsyncGenerator[tuple[int, Output], None]:
        """The outputs of several prompts as they come; a failure of one ends all."""
        if len(prompts) == 1:
            async with aclosing(self._of_one(0, prompts[0])) as outputs:
                async for item in outputs:
                    yield item
            return
        queue: asyncio.Queue[tuple[int, Output] | BaseException | None] = asyncio.Queue()

        async def run(number: int) -> None:
            try:
                async with aclosing(self._of_one(number, prompts[number])) as outputs:
                    async for item in outputs:
                        queue.put_nowait(item)
                queue.put_nowait(None)
            except Exception as error:  # whatever it is, the one who reads the queue raises it
                queue.put_nowait(error)

        tasks = [asyncio.create_task(run(number)) for number in range(len(prompts))]
        try:
            running = len(tasks)
            while running:
                got = await queue.get()
                if isinstance(got, BaseException):
                    raise got
                if got is None:
                    running -= 1
                else:
                    yield got
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _of_one(self, number: int, prompt_ids: Sequence[int]) -> AsyncGenerator[tuple[int, Output], None]:
        """The outputs of one prompt's n answers; `ProviderError` if they end without reasons."""
        left = self.params.n
        generated = self.served.engine.generate(
            prompt_ids, self.params, adapter=self.adapter, priority=self.priority, deadline_s=self._seconds_left()
        )
        async with aclosing(generated) as outputs:
            async for output in outputs:
                left -= output.finish_reason is not None
                yield number * self.params.n + output.index, output
        if left > 0:
            raise ProviderError("The engine ended the answer without a reason.", "Send the request again.")

    def _seconds_left(self) -> float | None:
        if self.timeout_s is None:
            return None
        elapsed = time.perf_counter() - self.received_at
        if elapsed >= self.timeout_s:
            raise DeadlineError(elapsed)
        return self.timeout_s - elapsed

    def _observe(self, times: _Times, output: Output) -> None:
        now = time.perf_counter()
        if times.first is None:
            times.first = now
            self.host.metrics.first_token(now - self.received_at)
        else:
            self.host.metrics.next_token(now - times.latest)
        times.latest = now
        if output.finish_reason is not None:
            self.host.metrics.answered(now - times.first, output.completion_tokens)

    def _finish(self, reason: str, usage: Usage | None = None) -> None:
        """Count the request's end, once."""
        if not self._counted:
            self._counted = True
            seconds = time.perf_counter() - self.received_at
            prompt_tokens, completion_tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
            self.host.metrics.finished(reason, seconds, prompt_tokens, completion_tokens)


@dataclass(slots=True)
class _Times:
    latest: float
    first: float | None = None


EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def until_hung_up(receive: Receive, answer: Awaitable[None]) -> bool:
    """Run `answer`; cancel it when the caller closes the connection. True if it ran to its end."""
    work = asyncio.ensure_future(answer)
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
    return answered


async def _hung_up(receive: Receive) -> None:
    """Return when the caller has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def timeout_of(header: str | None, timeout_s: float | None) -> float | None:
    """Seconds that a request may take: the shorter of `X-Request-Timeout-Ms` and `timeout_s`; None for no limit."""
    if header is None:
        return timeout_s
    try:
        from_header = float(header) / 1e3
    except ValueError:
        from_header = -1.0
    if not 0 < from_header < float("inf"):
        raise RequestError(
            f"X-Request-Timeout-Ms is {header[:40]!r}; allowed is a number above 0.", param="X-Request-Timeout-Ms"
        )
    return from_header if timeout_s is None else min(from_header, timeout_s)


def _sse(event: Json) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
