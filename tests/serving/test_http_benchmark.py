from __future__ import annotations

import socket

import pytest
from http_calls import await_health
from scripted_engine import ScriptedEngine, serve

from midwatch.errors import ProviderError, RequestError
from midwatch.serving import http_benchmark

SHORT = {"prompt_tokens": (5, 9), "new_tokens": (3, 3)}


async def test_clients_stream_every_request_and_count_by_the_server_s_own_counts() -> None:
    engine = ScriptedEngine()
    with serve(engine.open) as url:
        await_health(url, 200)
        found = await http_benchmark.measure(f"{url}/v1", clients=3, requests=10, shared_prefix=4, **SHORT)
    assert (found.requests, found.failed, found.model) == (10, 0, "scripted")
    assert found.new_tokens == 30
    assert 10 * 9 <= found.prompt_tokens <= 10 * 13
    assert 0 < found.ttft_ms.p50 <= found.e2e_ms.p50
    assert len(engine.seen) == 10
    assert len({tuple(prompt[:4]) for prompt, _ in engine.seen}) == 1
    assert all(params.ignore_eos and params.max_tokens == 3 for _, params in engine.seen)


async def test_the_same_seed_asks_the_same() -> None:
    engine = ScriptedEngine()
    with serve(engine.open) as url:
        await_health(url, 200)
        for seed in (1, 1, 2):
            await http_benchmark.measure(url, clients=1, requests=2, seed=seed, **SHORT)
    prompts = [prompt for prompt, _ in engine.seen]
    assert prompts[:2] == prompts[2:4] != prompts[4:]


async def test_answers_that_fail_are_counted_and_not_timed() -> None:
    with serve(ScriptedEngine(script=(RequestError("Full.", status=429),)).open) as url:
        await_health(url, 200)
        with pytest.raises(ProviderError, match="429"):
            await http_benchmark.measure(url, clients=1, requests=2, **SHORT)
    with serve(ScriptedEngine(script=("a", ProviderError("The engine stopped."))).open) as url:
        await_health(url, 200)
        with pytest.raises(ProviderError, match="stopped"):
            await http_benchmark.measure(url, clients=2, requests=2, **SHORT)


async def test_a_server_that_is_not_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ProviderError, match="v1/models"):
        await http_benchmark.measure(f"http://127.0.0.1:{port}", clients=1, requests=1, **SHORT)
