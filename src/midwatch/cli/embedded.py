"""The embedded engine as a provider: the port that the copilot asks through, without a server between.

It lives here because the gateway never imports the engine. Importing this module is cheap; the engine is imported
when it is loaded, in a thread, so that a log can be read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING

from midwatch.errors import ProviderError, RequestError
from midwatch.gateway.wire import ChatRequest, Completion, TokenLogprob

if TYPE_CHECKING:
    from pathlib import Path

    from midwatch.engine.async_engine import AsyncEngine
    from midwatch.engine.engine import Engine
    from midwatch.settings import EngineSettings


class EmbeddedProvider:
    """Answers from an `AsyncEngine` in this process. `usd_per_hour` prices an answer by the machine's time."""

    name = "embedded"
    remote = False

    def __init__(
        self, engine: AsyncEngine, *, model: str, adapter: str | None = None, usd_per_hour: float = 0.0
    ) -> None:
        self._engine = engine
        self._model = model
        self._adapter = adapter
        self._usd_per_hour = usd_per_hour

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer whole. Raises `ProviderError`, retryable if the engine is full or has stopped."""
        from midwatch.engine.request import SamplingParams

        started = time.perf_counter()
        ttft_ms = 0.0
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        last = None
        try:
            params = SamplingParams(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                seed=request.seed,
                stop=request.stop,
                json_schema=request.json_schema,
                logprobs=request.top_logprobs,
            )
            ids = self._engine.engine.chat_prompt(
                [{"role": message.role, "content": message.content} for message in request.messages]
            )
            async with contextlib.aclosing(self._engine.generate(ids, params, adapter=self._adapter)) as outputs:
                async for output in outputs:
                    ttft_ms = ttft_ms or (time.perf_counter() - started) * 1000
                    text.append(output.text_delta)
                    logprobs += [
                        TokenLogprob(
                            token=item.text,
                            logprob=item.logprob,
                            top=tuple((other.token.decode("utf-8", "replace"), other.logprob) for other in item.top),
                        )
                        for item in output.logprobs
                    ]
                    last = output
        except RequestError as error:
            raise ProviderError(error.what, error.next_step, retryable=error.status == 429) from error
        if last is None or last.finish_reason == "error":
            raise ProviderError("The engine could not finish an answer in the form that was asked.", retryable=False)
        latency_ms = (time.perf_counter() - started) * 1000
        return Completion(
            text="".join(text),
            finish_reason=str(last.finish_reason),
            provider=self.name,
            model=self._model,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            ttft_ms=ttft_ms,
            latency_ms=latency_ms,
            cost_usd=self._usd_per_hour * latency_ms / 3_600_000,
            logprobs=tuple(logprobs),
        )

    async def aclose(self) -> None:
        """Stop the engine."""
        await self._engine.aclose()


def load_in_thread(path: Path, settings: EngineSettings, kernel_dir: Path) -> Future[Engine]:
    """Begin to load the weights at `path`; the future gives the engine or its `ModelError`."""
    future: Future[Engine] = Future()

    def load() -> None:
        try:
            from midwatch.engine.cores import spin_briefly

            spin_briefly()
            from midwatch.engine.engine import Engine

            future.set_result(Engine.load(path, settings, kernel_dir=kernel_dir))
        except BaseException as error:  # whoever waits must hear of it
            future.set_exception(error)

    Thread(target=load, name="midwatch-load", daemon=True).start()
    return future


async def start(loading: Future[Engine], *, model: str, usd_per_hour: float) -> EmbeddedProvider:
    """The provider, once the engine is loaded and its thread runs. Raises what loading raised.

    `model` is the name of the weights, or of a loaded adapter, which then answers.
    """
    from midwatch.engine.async_engine import AsyncEngine

    engine = AsyncEngine(await asyncio.wrap_future(loading))
    await engine.start()
    adapter = model if model in engine.engine.adapters.names else None
    return EmbeddedProvider(engine, model=model, adapter=adapter, usd_per_hour=usd_per_hour)
