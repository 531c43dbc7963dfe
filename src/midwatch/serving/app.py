"""The routes: OpenAI's `/v1/...`, `/health` for a supervisor, `/metrics` for a scraper."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from midwatch.errors import MidwatchError, RequestError
from midwatch.serving.answers import ChatShape, TextShape
from midwatch.serving.errors import (
    PromptTooLongError,
    UnknownModelError,
    on_http_error,
    on_midwatch_error,
    on_surprise,
)
from midwatch.serving.generation import Generation, Prompt
from midwatch.serving.host import Host, OpenModel, Served
from midwatch.serving.protocol import ChatCompletionRequest, CompletionRequest, parse

MAX_BODY_BYTES = 20_000_000
MAX_DRAINED_BYTES = 100_000_000
MAX_CHARS_PER_TOKEN = 256
INLINE_CHARS = 4_000
"""A prompt up to this long is tokenized on the event loop; a longer one on a thread, so that nobody else waits."""


def create_app(
    name: str, open_model: OpenModel, *, on_failed: Callable[[MidwatchError], None] = lambda error: None
) -> Starlette:
    """An ASGI app that serves one model as `name`.

    The model is opened when the app starts, beside the requests: until then `/health` says 503 "loading". `on_failed`
    is called once if it cannot be loaded or if the engine dies.
    """
    host = Host(name=name, open_model=open_model, on_failed=on_failed)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        stop = asyncio.Event()
        holding = asyncio.create_task(host.hold(stop))
        yield
        if host.served is None:
            holding.cancel()  # still loading
        stop.set()
        await asyncio.gather(holding, return_exceptions=True)

    routes = _Routes(host)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.text, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{model:path}", routes.model, methods=["GET"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            MidwatchError: on_midwatch_error,
            HTTPException: on_http_error,
            Exception: on_surprise,
        },
    )


class _Routes:
    def __init__(self, host: Host) -> None:
        self.host = host

    async def chat(self, request: Request) -> Generation:
        """`POST /v1/chat/completions`."""
        received_at = time.perf_counter()
        body = parse(ChatCompletionRequest, await _read(request))
        served, params = self.host.ready(body.model), body.params()
        turns = [message.as_turn() for message in body.messages]
        size = sum(len(turn["content"]) for turn in turns)
        return Generation(
            generator=served.generator,
            prompt=_prompt(served, lambda: served.chat_prompt(turns), size, "messages"),
            params=params,
            shape=ChatShape(model=self.host.name, include_usage=body.include_usage, with_logprobs=body.logprobs),
            stream=body.stream,
            metrics=self.host.metrics,
            on_dead=self.host.died,
            received_at=received_at,
        )

    async def text(self, request: Request) -> Generation:
        """`POST /v1/completions`."""
        received_at = time.perf_counter()
        body = parse(CompletionRequest, await _read(request))
        served, params, prompt = self.host.ready(body.model), body.params(), body.prompt
        with_logprobs = body.logprobs is not None
        return Generation(
            generator=served.generator,
            prompt=_prompt(
                served, lambda: served.encode(prompt) if isinstance(prompt, str) else prompt, len(prompt), "prompt"
            ),
            params=params,
            shape=TextShape(model=self.host.name, include_usage=body.include_usage, with_logprobs=with_logprobs),
            stream=body.stream,
            metrics=self.host.metrics,
            on_dead=self.host.died,
            received_at=received_at,
        )

    async def models(self, _: Request) -> Response:
        """`GET /v1/models`."""
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{model}`."""
        if request.path_params["model"] != self.host.name:
            raise UnknownModelError(request.path_params["model"], self.host.name)
        return _json(self._card())

    async def health(self, _: Request) -> Response:
        """`GET /health`."""
        status, body = self.host.health()
        return _json(body, status)

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.host.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _card(self) -> dict[str, Any]:
        return {"id": self.host.name, "object": "model", "created": self.host.created, "owned_by": "midwatch"}


def _prompt(served: Served, encode: Callable[[], Sequence[int]], size: int, param: str) -> Prompt:
    """How to get the prompt's ids later; text that cannot fit (a token is at most 256 characters) is refused now."""
    limit = served.max_model_len
    if size > limit * MAX_CHARS_PER_TOKEN:
        raise PromptTooLongError(f"{param} holds {size} characters", limit, param)

    async def run() -> Sequence[int]:
        ids = encode() if size <= INLINE_CHARS else await asyncio.to_thread(encode)
        if len(ids) >= limit:
            raise PromptTooLongError(f"{param} makes {len(ids)} tokens", limit, param)
        return ids

    return run


async def _read(request: Request) -> bytes:
    """The body, if it is JSON by its header and not too large.

    A body that is too large is read to its end (up to a limit) and thrown away, so that the caller hears the 413.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    body = bytearray()
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received <= MAX_BODY_BYTES:
                body += chunk
            elif received > MAX_DRAINED_BYTES:
                break
    except ClientDisconnect:
        raise RequestError("The connection was closed before the body was whole.") from None
    if received > MAX_BODY_BYTES:
        what = f"The body is larger than {MAX_BODY_BYTES} bytes."
        raise RequestError(what, "Send less text.", status=413)
    if kind != "application/json":
        what = f"The body is said to be {kind[:100]!r}."
        raise RequestError(what, "Send Content-Type: application/json.", status=415)
    return bytes(body)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")
