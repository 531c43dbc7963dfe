"""`POST /v1/embeddings`: texts to vectors, by pooling the model's last hidden states.

Extensions to OpenAI's body: `pooling` ("mean" over the tokens, the default, or "last") and `normalize`.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import field_validator
from starlette.types import Receive, Scope, Send

from midwatch.engine.request import Output, Pooling
from midwatch.errors import MidwatchError, RequestError
from midwatch.serving.bodies import Body, reply
from midwatch.serving.errors import response_to
from midwatch.serving.generation import Prompts, until_hung_up
from midwatch.serving.host import Host, Served
from midwatch.serving.protocol import check_several, several

MAX_INPUTS = 2048
AT_A_TIME = 16
"""Inputs of one request that the engine has at the same time, so that others find a place in its queue."""


class EmbeddingRequest(Body):
    """The body: a text, a list of token ids, or a list of either."""

    input: str | list[int] | list[str] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    pooling: Pooling = "mean"
    normalize: bool = True

    @property
    def inputs(self) -> list[str | list[int]]:
        """One text or one list of ids per embedding."""
        return several(self.input)

    @field_validator("input", mode="before")
    @classmethod
    def _texts_or_ids(cls, value: Any) -> Any:
        return check_several(value, MAX_INPUTS)


@dataclass(kw_only=True)
class Embedding:
    """An ASGI response: every input embedded, unless the caller leaves first."""

    host: Host
    served: Served
    adapter: str | None
    inputs: Prompts
    asked: EmbeddingRequest
    received_at: float = field(default_factory=time.perf_counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Cancelling this stops the engine's work too."""
        with self.host.serving(self.adapter):
            if not await until_hung_up(receive, self._answer(scope, receive, send)):
                self._finish("abort")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            outputs = await self._embed(await self.inputs())
            embeddings = [self._encoded(output) for output in outputs]
        except MidwatchError as error:
            self._finish("error")
            if not self.served.engine.healthy:
                self.host.died()
            await response_to(error, self.host.retry_after_s())(scope, receive, send)
            return
        tokens = sum(output.prompt_tokens for output in outputs)
        self._finish("stop", tokens)
        body = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": embedding}
                for index, embedding in enumerate(embeddings)
            ],
            "model": self.adapter or self.host.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        await reply(body)(scope, receive, send)

    async def _embed(self, inputs: Sequence[Sequence[int]]) -> list[Output]:
        places = asyncio.Semaphore(AT_A_TIME)

        async def one(token_ids: Sequence[int]) -> Output:
            async with places:
                return await self.served.engine.embed(
                    token_ids, self.asked.pooling, adapter=self.adapter, normalize=self.asked.normalize
                )

        tasks = [asyncio.create_task(one(token_ids)) for token_ids in inputs]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def _encoded(self, output: Output) -> list[float] | str:
        values = output.embedding or ()
        if self.asked.dimensions not in {None, len(values)}:
            what = f"dimensions is {self.asked.dimensions}; this model's embeddings have {len(values)}."
            raise RequestError(what, "Leave it out.", param="dimensions")
        if self.asked.encoding_format == "float":
            return list(values)
        return base64.b64encode(np.array(values, dtype="<f4").tobytes()).decode()

    def _finish(self, reason: str, tokens: int = 0) -> None:
        self.host.metrics.finished(reason, time.perf_counter() - self.received_at, tokens)
