from __future__ import annotations

from http_calls import await_health, call, post
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import ScriptedEngine, serve

from midwatch.engine.request import EngineStats
from midwatch.serving.host import Host
from midwatch.serving.metrics import Metrics

NAMES = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "generation_tokens",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_decode_time_seconds",
    "iteration_tokens_total",
    "request_success",
    "request_prompt_tokens",
    "request_generation_tokens",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
    "lora_requests_info",
    "cache_config_info",
}


def test_the_page_bears_vllm_s_names_and_our_account_of_the_pool() -> None:
    with serve(ScriptedEngine().open) as url:
        await_health(url, 200)
        post(url, "/v1/completions", prompt="ab", n=2)
        page = call(url, "GET", "/metrics")[2].decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    slots = {f"midwatch:kv_slots_{kind}" for kind in ("allocated", "used", "shared", "empty", "cached")}
    assert {f"vllm:{name}" for name in NAMES} | slots <= set(families)
    value = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert value["vllm:kv_cache_usage_perc"] == 0.25
    assert value["vllm:iteration_tokens_total_sum"] == 60
    assert value["vllm:iteration_tokens_total_count"] == 3
    assert value["midwatch:kv_slots_empty"] == 5
    assert value["vllm:time_to_first_token_seconds_count"] == 2
    assert value["vllm:request_time_per_output_token_seconds_count"] == 2
    assert value["vllm:e2e_request_latency_seconds_count"] == 1


def test_when_to_come_back_follows_from_how_fast_requests_ended_lately() -> None:
    now = [100.0]
    stats = EngineStats(waiting=60)
    host = Host(name="m", open_model=ScriptedEngine().open, on_failed=lambda error: None)
    host.metrics = metrics = Metrics("m", lambda: stats, lambda: (), lambda: now[0])
    host._stats = lambda: stats
    assert host.retry_after_s() == 1
    for _ in range(11):
        metrics.finished("stop", 1.0)
        now[0] += 0.5
    assert 10 < host.retry_after_s() <= 20  # half of 60 waiting, two a second
    metrics.finished("abort", 1.0)  # nobody was answered
    now[0] += 1000
    assert host.retry_after_s() == 1
