"""The one model of a server: what is served, and whether it is loading, ready or failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from midwatch.engine.request import EngineStats
from midwatch.errors import MidwatchError, ProviderError
from midwatch.serving.errors import LoadingError, UnknownModelError
from midwatch.serving.generation import Generator
from midwatch.serving.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Served:
    """A loaded model: what runs it, what turns text into its token ids, and how many of them its context holds."""

    generator: Generator
    chat_prompt: Callable[[list[dict[str, str]]], Sequence[int]]
    encode: Callable[[str], Sequence[int]]
    max_model_len: int


OpenModel = Callable[[], AbstractAsyncContextManager[Served]]


@dataclass(kw_only=True)
class Host:
    """The one model of a server, from loading through ready to failed. `on_failed` hears of the failure once."""

    name: str
    open_model: OpenModel
    on_failed: Callable[[MidwatchError], None]
    served: Served | None = None
    failure: MidwatchError | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.name, self._stats)

    async def hold(self, stop: asyncio.Event) -> None:
        """Load the model, keep it until `stop`, and close it."""
        try:
            async with self.open_model() as self.served:
                await stop.wait()
        except MidwatchError as error:
            self.fail(error)
        except Exception as error:  # a fault of ours while loading must reach whoever started the server
            self.fail(ProviderError(f"The model could not be loaded ({type(error).__name__}: {str(error)[:300]})."))
        finally:
            self.served = None

    def fail(self, error: MidwatchError) -> None:
        """Remember why nothing can be served any more, and say so once."""
        if self.failure is None:
            self.failure = error
            self.on_failed(error)

    def ready(self, model: str | None) -> Served:
        """The loaded model, if it is the one asked for. Raises `LoadingError`, `UnknownModelError` or the failure."""
        if model is not None and model != self.name:
            raise UnknownModelError(model, self.name)
        if self.failure is not None:
            raise ProviderError(self.failure.what, self.failure.next_step)
        if self.served is None:
            raise LoadingError
        return self.served

    def died(self) -> None:
        """The engine stopped under a request."""
        self.fail(ProviderError("The engine stopped because a step failed.", "Restart the server; its log says more."))

    def health(self) -> tuple[int, dict[str, str]]:
        """Status and body of `/health`."""
        if self.failure is not None or (self.served is not None and not self.served.generator.healthy):
            return 503, {"status": "failed", "model": self.name}
        if self.served is None:
            return 503, {"status": "loading", "model": self.name}
        return 200, {"status": "ok", "model": self.name}

    def _stats(self) -> EngineStats | None:
        return self.served.generator.stats() if self.served else None
