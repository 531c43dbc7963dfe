"""An OpenAI-compatible host, well and unwell: a real server on this machine answers, stalls, cuts and lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from midwatch.errors import ProviderError
from midwatch.gateway.providers import OpenAIProvider
from midwatch.gateway.wire import ChatRequest, Message
from midwatch.settings import ProviderSettings

ASK = ChatRequest(messages=(Message(role="user", content="why?"),), json_schema={"type": "object"}, top_logprobs=2)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def host(handler: Handler) -> AsyncIterator[str]:
    """Serve `handler` at `/v1/chat/completions`; gives the base URL."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


def provider(url: str, *, remote: bool = False, **changes: Any) -> OpenAIProvider:
    settings = ProviderSettings(base_url=url, model="m", usd_per_mtok_in=1.0, usd_per_mtok_out=2.0, **changes)
    return OpenAIProvider(settings, name="host", remote=remote)


def chunk(content: str | None = None, **more: Any) -> bytes:
    event: dict[str, Any] = {"model": "m-1", "choices": []}
    if content is not None or "finish_reason" in more:
        choice: dict[str, Any] = {"delta": {"content": content}, "finish_reason": more.pop("finish_reason", None)}
        choice["logprobs"] = more.pop("logprobs", None)
        event["choices"] = [choice]
    return b"data: " + json.dumps({**event, **more}).encode() + b"\n\n"


def streaming(*events: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        return response

    return handler


async def test_a_stream_becomes_a_whole_answer_with_its_tokens_and_dollars() -> None:
    logprobs = {"content": [{"token": "no", "logprob": -0.5, "top_logprobs": [{"token": "yes", "logprob": -1.5}]}]}
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}
    events = [
        chunk("di", logprobs=logprobs),
        chunk("sk", finish_reason="stop"),
        chunk(usage=usage),
        b"data: [DONE]\n\n",
    ]
    async with host(streaming(*events)) as url:
        asked = provider(url)
        answer = await asked.complete(ASK)
        await asked.aclose()
    assert (answer.text, answer.finish_reason, answer.model) == ("disk", "stop", "m-1")
    assert answer.cost_usd == pytest.approx(2.0)
    assert answer.logprobs[0].top == (("yes", -1.5),)
    assert 0 < answer.ttft_ms <= answer.latency_ms


async def test_the_key_and_the_schema_reach_the_host_and_a_remote_host_is_not_asked_for_logprobs() -> None:
    seen: list[tuple[str | None, dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.get("Authorization"), await request.json()))
        return await streaming(chunk("x", finish_reason="stop"), b"data: [DONE]\n\n")(request)

    async with host(handler) as url:
        for remote in (False, True):
            asked = provider(url, remote=remote, api_key="secret")
            await asked.complete(ASK)
            await asked.aclose()
    assert seen[0][0] == "Bearer secret"
    assert seen[0][1]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert seen[0][1]["top_logprobs"] == 2
    assert "logprobs" not in seen[1][1]


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (404, False), (400, False), (429, True), (503, True)])
async def test_a_refusal_says_why_and_whether_asking_again_can_help(status: int, retryable: bool) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "not today"}}, status=status)

    async with host(handler) as url:
        asked = provider(url)
        with pytest.raises(ProviderError, match=f"{status}: not today") as caught:
            await asked.complete(ASK)
        await asked.aclose()
    assert caught.value.retryable is retryable


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((chunk("half an ans"),), "closed the stream"),
        ((b"data: {not json\n\n",), "not an OpenAI chat chunk"),
        ((b"data: [1, 2]\n\n",), "not an OpenAI chat chunk"),
        ((chunk("a"), b'data: {"error": {"message": "engine died"}}\n\n'), "engine died"),
        ((b"<html>hello</html>",), "closed the stream"),
    ],
)
async def test_a_broken_stream_is_a_failure_and_never_a_short_answer(events: tuple[bytes, ...], words: str) -> None:
    async with host(streaming(*events)) as url:
        asked = provider(url)
        with pytest.raises(ProviderError, match=words):
            await asked.complete(ASK)
        await asked.aclose()


async def test_a_stalled_host_is_given_up_at_the_deadline() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with host(handler) as url:
        asked = provider(url, timeout_s=0.1)
        with pytest.raises(ProviderError, match="did not answer within") as caught:
            await asked.complete(ASK)
        await asked.aclose()
    assert caught.value.retryable


async def test_a_host_that_is_not_there_is_named_with_what_to_check() -> None:
    async with host(streaming()) as url:
        pass
    asked = provider(url)
    with pytest.raises(ProviderError, match="cannot be reached") as caught:
        await asked.complete(ASK)
    await asked.aclose()
    assert "base_url" in caught.value.next_step
    assert caught.value.retryable


async def test_cancelling_a_call_hangs_up_on_the_host() -> None:
    hung_up = asyncio.Event()
    started = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        started.set()
        try:
            while True:
                await response.write(b": still here\n\n")
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            hung_up.set()
            raise

    async with host(handler) as url:
        asked = provider(url)
        call = asyncio.create_task(asked.complete(ASK))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(5):
            await hung_up.wait()
        await asked.aclose()
