"""The routes: OpenAI's and vLLM's `/v1/...`, `/health` for a supervisor, `/metrics` for a scraper."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from midwatch.errors import MidwatchError
from midwatch.serving.answers import ChatShape, TextShape
from midwatch.serving.block_stream import BlockRoutes
from midwatch.serving.bodies import read, reply
from midwatch.serving.embeddings import Embedding, EmbeddingRequest
from midwatch.serving.errors import PromptTooLongError, on_http_error, on_midwatch_error, on_surprise
from midwatch.serving.generation import Generation, Prompts, timeout_of
from midwatch.serving.host import Host, OpenModel, Served
from midwatch.serving.model_routes import ModelRoutes
from midwatch.serving.protocol import ChatCompletionRequest, CompletionRequest

MAX_CHARS_PER_TOKEN = 256
INLINE_CHARS = 4_000
"""Texts up to this long together are tokenized on the event loop; longer ones on a thread, so that nobody waits."""
TIMEOUT_HEADER = "x-request-timeout-ms"


def create_app(
    name: str, open_model: OpenModel, *, on_failed: Callable[[MidwatchError], None] = lambda error: None
) -> Starlette:
    """An ASGI app that serves one model as `name`; `app.state.host` is its `Host`.

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

    routes, model, blocks = _Routes(host), ModelRoutes(host), BlockRoutes(host)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.text, methods=["POST"]),
            Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
            Route("/v1/models", model.models, methods=["GET"]),
            Route("/v1/models/{model:path}", model.model, methods=["GET"]),
            Route("/v1/load_lora_adapter", model.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", model.unload_adapter, methods=["POST"]),
            Route("/tokenize", model.tokenize, methods=["POST"]),
            Route("/detokenize", model.detokenize, methods=["POST"]),
            Route("/engine/blocks", blocks.blocks, methods=["GET"]),
            Route("/version", model.version, methods=["GET"]),
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
    app.state.host = host
    return app


class _Routes:
    def __init__(self, host: Host) -> None:
        self.host = host

    async def chat(self, request: Request) -> Generation:
        """`POST /v1/chat/completions`."""
        received_at = time.perf_counter()
        body = await read(request, ChatCompletionRequest)
        (served, adapter), params = self.host.ready(body.model), body.params()
        turns = [message.as_turn() for message in body.messages]
        return Generation(
            host=self.host,
            served=served,
            prompts=_prompts(
                served,
                lambda: [served.tokenizer.chat_prompt(turns)],
                [sum(len(turn["content"]) for turn in turns)],
                "messages",
            ),
            params=params,
            shape=ChatShape(
                model=adapter or self.host.name, include_usage=body.include_usage, with_logprobs=body.logprobs
            ),
            stream=body.stream,
            adapter=adapter,
            priority=body.priority,
            timeout_s=timeout_of(request.headers.get(TIMEOUT_HEADER), body.timeout_s),
            received_at=received_at,
        )

    async def text(self, request: Request) -> Generation:
        """`POST /v1/completions`."""
        received_at = time.perf_counter()
        body = await read(request, CompletionRequest)
        (served, adapter), params = self.host.ready(body.model), body.params()
        asked = body.prompts
        ids_of_prompts: list[list[int]] = []

        def encode() -> list[list[int]]:
            ids_of_prompts.extend(_ids(served, prompt) for prompt in asked)
            return ids_of_prompts

        def echoed(number: int) -> tuple[str, str]:
            prompt, decode = asked[number], served.tokenizer.decode
            text = prompt if isinstance(prompt, str) else decode(prompt)
            return text, decode(ids_of_prompts[number][:1])

        return Generation(
            host=self.host,
            served=served,
            prompts=_prompts(served, encode, [len(prompt) for prompt in asked], "prompt"),
            params=params,
            shape=TextShape(
                model=adapter or self.host.name,
                include_usage=body.include_usage,
                with_logprobs=body.logprobs is not None,
                answers_per_prompt=params.n,
                echoed=echoed if body.echo else None,
                asked_prompt_logprobs=body.prompt_logprobs is not None,
            ),
            stream=body.stream,
            adapter=adapter,
            priority=body.priority,
            timeout_s=timeout_of(request.headers.get(TIMEOUT_HEADER), body.timeout_s),
            received_at=received_at,
        )

    async def embeddings(self, request: Request) -> Embedding:
        """`POST /v1/embeddings`."""
        received_at = time.perf_counter()
        body = await read(request, EmbeddingRequest)
        served, adapter = self.host.ready(body.model)
        asked = body.inputs
        return Embedding(
            host=self.host,
            served=served,
            adapter=adapter,
            inputs=_prompts(
                served,
                lambda: [_ids(served, item) for item in asked],
                [len(item) for item in asked],
                "input",
                answers=False,
            ),
            asked=body,
            received_at=received_at,
        )

    async def health(self, _: Request) -> Response:
        """`GET /health`."""
        status, body = self.host.health()
        return reply(dict(body), status)

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.host.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _ids(served: Served, prompt: str | list[int]) -> list[int]:
    return served.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


def _prompts(
    served: Served,
    encode: Callable[[], Sequence[Sequence[int]]],
    sizes: Sequence[int],
    param: str,
    *,
    answers: bool = True,
) -> Prompts:
    """How to get the prompts' ids later; text that cannot fit (a token is at most 256 characters) is refused now.

    `answers`: there must be room for a token of an answer.
    """
    limit = served.max_model_len
    if max(sizes) > limit * MAX_CHARS_PER_TOKEN:
        raise PromptTooLongError(f"{param} holds {max(sizes)} characters", limit, param)

    async def run() -> Sequence[Sequence[int]]:
        ids = encode() if sum(sizes) <= INLINE_CHARS else await asyncio.to_thread(encode)
        longest = max(map(len, ids))
        if longest + answers > limit:
            raise PromptTooLongError(f"{param} makes {longest} tokens", limit, param)
        return ids

    return run
