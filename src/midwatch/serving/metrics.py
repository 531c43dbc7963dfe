"""What the server counts, under vLLM's metric names, so that a dashboard made for one reads the other.

Gauges and totals are read from the engine when they are asked for; times are observed as answers go out. What vLLM has
no name for is `midwatch:`: where every KV place is, and so how much of the memory is allocated and empty.
Queue and prefill time apart are not known here; their sum is the time to the first token.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from midwatch.engine.request import EngineStats

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ITL_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_E2E_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_LABEL = ("model_name",)
_REASONS = ("stop", "length", "abort", "deadline", "error")
RECENT_S = 60.0

Stats = Callable[[], EngineStats | None]
Adapters = Callable[[], tuple[str, ...]]


class Metrics:
    """One server's metrics, in a registry of their own.

    `stats` returns None until the engine is loaded; `adapters_in_flight` names those that a request is using now.
    `clock` gives seconds, for how fast requests ended lately.
    """

    def __init__(
        self, model: str, stats: Stats, adapters_in_flight: Adapters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_EngineCollector(model, stats, adapters_in_flight))
        self._model = model
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=512)
        self._ttft = self._histogram("time_to_first_token_seconds", "Time to the first token, seconds.", _TTFT_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Time between output steps, seconds.", _ITL_S)
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after an answer's first, seconds.", _ITL_S
        )
        self._decode = self._histogram(
            "request_decode_time_seconds", "From an answer's first token to its last, seconds.", _E2E_S
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Time of a whole request, seconds.", _E2E_S)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generation = self._histogram("request_generation_tokens", "Generated tokens of a request.", _TOKENS)
        self._finished = Counter(
            "vllm:request_success_total",
            "Finished requests by reason.",
            (*_LABEL, "finished_reason"),
            registry=self.registry,
        )
        for reason in _REASONS:
            self._finished.labels(model, reason)

    def first_token(self, seconds: float) -> None:
        """An answer's first output came `seconds` after its request was received."""
        self._ttft.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A further output came `seconds` after the one before."""
        self._itl.observe(seconds)

    def answered(self, decode_seconds: float, tokens: int) -> None:
        """An answer of so many tokens is whole, `decode_seconds` after its first output."""
        self._decode.observe(decode_seconds)
        if tokens > 1:
            self._tpot.observe(decode_seconds / (tokens - 1))

    def finished(self, reason: str, seconds: float, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """A request ended: `stop`, `length`, `abort` (the caller hung up), `deadline` or `error`.

        Times are of answers only.
        """
        self._finished.labels(self._model, reason).inc()
        if reason in {"stop", "length"}:
            self._ends.append(self._clock())
            self._e2e.observe(seconds)
            self._prompt.observe(prompt_tokens)
            self._generation.observe(completion_tokens)

    def recent_requests_per_s(self) -> float:
        """How fast requests were answered in the last minute; 0 if it is not known."""
        since = self._clock() - RECENT_S
        while self._ends and self._ends[0] < since:
            self._ends.popleft()
        if len(self._ends) < 2:
            return 0.0
        return (len(self._ends) - 1) / max(self._clock() - self._ends[0], 1e-3)

    def render(self) -> bytes:
        """The page for a scraper, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", help_text, _LABEL, buckets=buckets, registry=self.registry)
        child: Histogram = histogram.labels(self._model)  # so it is on the page, at 0, before the first request
        return child


class _EngineCollector(Collector):
    """Reads the engine's own counters at scrape time."""

    def __init__(self, model: str, stats: Stats, adapters_in_flight: Adapters) -> None:
        self._model = model
        self._stats = stats
        self._adapters_in_flight = adapters_in_flight

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        if stats is None:
            return
        for name, help_text, value in _gauges(stats):
            gauge = GaugeMetricFamily(name, help_text, labels=_LABEL)
            gauge.add_metric((self._model,), value)
            yield gauge
        for name, help_text, value in _totals(stats):
            counter = CounterMetricFamily(name, help_text, labels=_LABEL)
            counter.add_metric((self._model,), value)
            yield counter
        tokens = float(stats.prompt_tokens_total + stats.generation_tokens_total)
        steps = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Prompt and generated tokens per step; sum and count only.", labels=_LABEL
        )
        steps.add_metric((self._model,), [("+Inf", float(stats.steps_total))], tokens)
        yield steps
        yield self._cache_config(stats)
        yield self._adapters(stats)

    def _cache_config(self, stats: EngineStats) -> Metric:
        facts = {
            "model_name": self._model,
            "backend": stats.backend,
            "block_size": str(stats.kv_block_size),
            "num_blocks": str(stats.kv_blocks_total),
            "bytes_per_token": str(stats.kv_bytes_per_token),
        }
        info = GaugeMetricFamily("vllm:cache_config_info", "The KV pool, as labels.", labels=tuple(facts))
        info.add_metric(tuple(facts.values()), 1.0)
        return info

    def _adapters(self, stats: EngineStats) -> Metric:
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "LoRA adapters in use and loaded, as labels; the value is when this was read.",
            labels=(*_LABEL, "running_lora_adapters", "available_lora_adapters"),
        )
        info.add_metric((self._model, ",".join(self._adapters_in_flight()), ",".join(stats.adapters)), time.time())
        return info


def _gauges(stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
    used = 1 - stats.kv_blocks_free / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
    return (
        ("vllm:num_requests_running", "Requests being computed.", float(stats.running)),
        ("vllm:num_requests_waiting", "Requests that wait for a place.", float(stats.waiting)),
        ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", used),
        ("midwatch:kv_slots_allocated", "KV places in blocks that requests hold.", float(stats.kv_slots_allocated)),
        ("midwatch:kv_slots_used", "KV places of those that hold a token.", float(stats.kv_slots_used)),
        ("midwatch:kv_slots_empty", "KV places of those that hold none.", float(stats.kv_slots_empty)),
        ("midwatch:kv_slots_shared", "KV places that sharing saved.", float(stats.kv_slots_shared)),
        ("midwatch:kv_slots_cached", "KV places of kept prefixes that nobody holds.", float(stats.kv_slots_cached)),
        ("midwatch:kv_bytes_per_token", "Bytes of one KV place.", float(stats.kv_bytes_per_token)),
        ("midwatch:weight_bytes", "Bytes of weights that a step reads.", float(stats.weight_bytes)),
    )


def _totals(stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
    return (
        ("vllm:prompt_tokens", "Tokens of prompts taken in.", float(stats.prompt_tokens_total)),
        ("vllm:generation_tokens", "Tokens generated.", float(stats.generation_tokens_total)),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up.", float(stats.prefix_cache_queries_total)),
        ("vllm:prefix_cache_hits", "Prompt tokens found.", float(stats.prefix_cache_hits_total)),
        ("vllm:num_preemptions", "Requests that had to give their blocks back.", float(stats.preemptions_total)),
        ("vllm:spec_decode_num_drafts", "Drafts checked.", float(stats.spec_drafts_total)),
        ("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", float(stats.spec_draft_tokens_total)),
        ("vllm:spec_decode_num_accepted_tokens", "Drafted tokens kept.", float(stats.spec_accepted_tokens_total)),
        ("midwatch:grammar_forced_tokens", "Tokens that a grammar forced.", float(stats.forced_tokens_total)),
        ("midwatch:engine_steps", "Engine steps.", float(stats.steps_total)),
        ("midwatch:engine_step_seconds", "Time in engine steps, seconds.", stats.step_seconds_total),
    )
