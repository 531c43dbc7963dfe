"""What the server counts, under vLLM's metric names, so that a dashboard made for one reads the other.

Gauges and totals are read from the engine when they are asked for; times are observed as answers go out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from midwatch.engine.request import EngineStats

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ITL_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_E2E_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_LABEL = ("model_name",)


class Metrics:
    """One server's metrics, in a registry of their own. `stats` returns None until the engine is loaded."""

    def __init__(self, model: str, stats: Callable[[], EngineStats | None]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_EngineCollector(model, stats))
        self._model = model
        self._ttft = self._histogram("time_to_first_token_seconds", "Time to the first token, seconds.", _TTFT_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Time between output steps, seconds.", _ITL_S)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Time of a whole request, seconds.", _E2E_S)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generation = self._histogram("request_generation_tokens", "Generated tokens of a request.", _TOKENS)
        self._finished = Counter(
            "vllm:request_success_total",
            "Finished requests by reason.",
            (*_LABEL, "finished_reason"),
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._finished.labels(model, reason)

    def first_token(self, seconds: float) -> None:
        """A request's first output came `seconds` after it was received."""
        self._ttft.labels(self._model).observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A further output came `seconds` after the one before."""
        self._itl.labels(self._model).observe(seconds)

    def finished(self, reason: str, seconds: float, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """A request ended: `stop`, `length`, `abort` (the caller hung up) or `error`. Times are of answers only."""
        self._finished.labels(self._model, reason).inc()
        if reason in {"stop", "length"}:
            self._e2e.labels(self._model).observe(seconds)
            self._prompt.labels(self._model).observe(prompt_tokens)
            self._generation.labels(self._model).observe(completion_tokens)

    def render(self) -> bytes:
        """The page for a scraper, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", help_text, _LABEL, buckets=buckets, registry=self.registry)


class _EngineCollector(Collector):
    """Reads the engine's own counters at scrape time."""

    def __init__(self, model: str, stats: Callable[[], EngineStats | None]) -> None:
        self._model = model
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        if stats is None:
            return
        places = stats.kv_slots_allocated
        gauges = (
            ("vllm:num_requests_running", "Requests being computed.", float(stats.running)),
            ("vllm:num_requests_waiting", "Requests that wait for a place.", float(stats.waiting)),
            ("midwatch:kv_slots_used", "KV places that hold a token.", float(stats.kv_slots_used)),
            ("midwatch:kv_slots_allocated", "KV places held by live requests.", float(places)),
            ("midwatch:kv_bytes_per_token", "Bytes of one KV place.", float(stats.kv_bytes_per_token)),
        )
        totals = (
            ("vllm:prompt_tokens", "Prompt tokens computed.", float(stats.prompt_tokens_total)),
            ("vllm:generation_tokens", "Tokens generated.", float(stats.generation_tokens_total)),
            (
                "midwatch:grammar_forced_tokens",
                "Tokens that a grammar forced.",
                float(stats.forced_tokens_total),
            ),
            ("midwatch:engine_steps", "Engine steps.", float(stats.steps_total)),
            ("midwatch:engine_step_seconds", "Time in engine steps, seconds.", stats.step_seconds_total),
        )
        for name, help_text, value in gauges:
            gauge = GaugeMetricFamily(name, help_text, labels=_LABEL)
            gauge.add_metric((self._model,), value)
            yield gauge
        for name, help_text, value in totals:
            counter = CounterMetricFamily(name, help_text, labels=_LABEL)
            counter.add_metric((self._model,), value)
            yield counter
