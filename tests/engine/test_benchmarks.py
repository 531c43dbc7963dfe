from __future__ import annotations

import math

import torch
from engine_models import MakeEngine

from midwatch.engine import benchmarks
from midwatch.engine.percentiles import Percentiles


def test_percentiles_are_of_the_samples() -> None:
    samples = [float(number) for number in range(101)]
    assert Percentiles.of(samples) == Percentiles(least=0, p50=50, p95=95, p99=99)
    assert Percentiles.of([3.0]).p99 == 3
    assert Percentiles.of([]).p50 == 0


def test_a_latency_run_counts_what_a_step_reads(tiny: MakeEngine) -> None:
    engine = tiny(prefix_caching=False)
    found = benchmarks.latency(engine, batch=3, prompt_tokens=20, new_tokens=10, rounds=2, bandwidth_gb_s=10.0)
    stats = engine.stats()
    assert stats.generation_tokens_total == 3 * 10 * 3  # one round more than is counted
    assert found.roofline.bytes_per_step == stats.weight_bytes + 3 * 25 * stats.kv_bytes_per_token
    assert math.isclose(found.roofline.share, found.roofline.achieved_gb_s / 10)
    assert math.isclose(
        found.roofline.achieved_gb_s, found.roofline.bytes_per_step / (found.step_ms.p50 / 1e3) / 1e9, rel_tol=1e-6
    )
    assert len(found.rounds_tokens_per_s) == 2
    assert found.decode_tokens_per_s == max(found.rounds_tokens_per_s)


def test_a_throughput_run_serves_every_request_with_the_lengths_that_the_seed_gives(tiny: MakeEngine) -> None:
    asked = {"requests": 12, "prompt_tokens": (5, 40), "new_tokens": (3, 9), "seed": 4}
    runs = [
        benchmarks.throughput(tiny(max_num_seqs=3, max_waiting=2), **asked),
        benchmarks.throughput(tiny(max_num_seqs=4, max_waiting=90), **asked),
    ]
    for found in runs:
        assert found.requests == 12
        assert 12 * 5 <= found.prompt_tokens <= 12 * 40
        assert 12 * 3 <= found.new_tokens <= 12 * 9
        assert math.isclose(found.output_tokens_per_s, found.new_tokens / found.seconds)
        assert found.ttft_ms.p50 <= found.e2e_ms.p50
    assert (runs[0].prompt_tokens, runs[0].new_tokens) == (runs[1].prompt_tokens, runs[1].new_tokens)
    assert runs[0].steps > runs[1].steps


def test_a_shared_prefix_is_read_from_the_cache(tiny: MakeEngine) -> None:
    found = benchmarks.throughput(tiny(), requests=6, prompt_tokens=(10, 10), new_tokens=(2, 2), shared_prefix=64)
    assert found.prompt_tokens == 6 * 74
    assert found.cached_tokens >= 5 * 64


def test_memory_gives_some_gigabytes_a_second() -> None:
    before = torch.get_num_threads()
    assert 0.2 < benchmarks.measure_bandwidth_gb_s(torch.device("cpu"), 1, probe_bytes=1 << 24) < 2000
    assert torch.get_num_threads() == before
