"""What the server does when something goes wrong: a failing engine, a caller that leaves, a body that is no request."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import openai
import pytest
import uvicorn
from http_calls import await_health, call
from scripted_engine import ScriptedEngine, serve
from serve_process import health

from midwatch.errors import MidwatchError, ModelError, ProviderError, RequestError
from midwatch.serving.app import create_app
from midwatch.serving.host import Served
from midwatch.serving.server import DrainingServer

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def chat(url: str, **fields: object) -> tuple[int, dict[str, str], bytes]:
    return call(url, "POST", "/v1/chat/completions", json.dumps({**CHAT, **fields}).encode())


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"messages": "\xff\xfe"}', 400, "UTF-8"),
        (b"[1, 2]", 400, "not an object"),
        (b"null", 400, "not an object"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"messages": NaN}', 400, "not JSON"),
        (b'{"messages": {}}', 400, "valid list"),
        (b'{"messages": [{"role": "user"}]}', 400, "messages.0.content is missing"),
        (b'{"messages": [{"role": "user", "content": null}]}', 400, "must be a string"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', 400, "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}', 400, "seed|not JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999999999999999999}', 400, "max_tokens"),
    ],
)
def test_a_body_that_is_no_request_gets_a_sentence(body: bytes, status: int, says: str) -> None:
    import re

    with serve(ScriptedEngine().open) as url:
        await_health(url, 200)
        got, _, answer = call(url, "POST", "/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert (got, error["type"]) == (status, "invalid_request_error")
    assert re.search(says, error["message"])
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer) < 1000


def test_a_body_that_is_too_large_is_refused_and_the_next_request_is_served() -> None:
    engine = ScriptedEngine()
    with serve(engine.open) as url:
        await_health(url, 200)
        status, headers, answer = call(url, "POST", "/v1/completions", b" " * 50_000_000)
        assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")
        assert headers["connection"] == "close"
        assert chat(url)[0] == 200


def test_a_body_that_is_said_to_be_something_else_is_refused() -> None:
    with serve(ScriptedEngine().open) as url:
        await_health(url, 200)
        headers = {"Content-Type": "text/plain"}
        status, _, answer = call(url, "POST", "/v1/chat/completions", json.dumps(CHAT).encode(), headers)
    assert status == 415
    assert "application/json" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/%2e%2e/etc", 404),
        ("GET", "/<script>alert(1)</script>", 404),
    ],
)
def test_a_place_that_is_not_there_answers_in_the_same_shape(method: str, path: str, status: int) -> None:
    with serve(ScriptedEngine().open) as url:
        got, headers, answer = call(url, method, path)
    assert got == status
    assert headers["content-type"] == "application/json"
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"
    assert ("allow" in headers) == (status == 405)


def test_health_and_requests_say_loading_until_the_model_is_there() -> None:
    engine, may_load = ScriptedEngine(), []

    @asynccontextmanager
    async def slow() -> AsyncIterator[Served]:
        loaded = asyncio.Event()
        may_load.append((asyncio.get_running_loop(), loaded))
        await loaded.wait()
        async with engine.open() as served:
            yield served

    with serve(slow) as url:
        assert health(url) == (503, {"status": "loading", "model": "scripted"})
        status, headers, answer = chat(url)
        assert (status, json.loads(answer)["error"]["code"]) == (503, "loading")
        assert headers["retry-after"] == "1"
        assert call(url, "GET", "/v1/models")[0] == 200
        assert b"vllm:num_requests_running" not in call(url, "GET", "/metrics")[2]
        loop, loaded = may_load[0]
        loop.call_soon_threadsafe(loaded.set)
        assert await_health(url, 200) == {"status": "ok", "model": "scripted"}
        assert chat(url)[0] == 200


@pytest.mark.parametrize("error", [ModelError("The weights are cut.", "Fetch them again."), ValueError("surprise")])
def test_a_model_that_cannot_be_loaded_is_reported_once_and_never_served(error: Exception) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[Served]:
        raise error
        yield

    failures: list[MidwatchError] = []
    with serve(broken, failures) as url:
        assert await_health(url, 503)
        deadline = time.monotonic() + 10
        while health(url)[1]["status"] == "loading":
            assert time.monotonic() < deadline
        status, _, answer = chat(url)
        assert (status, json.loads(answer)["error"]["code"]) == (503, "engine_unavailable")
        assert str(error).split(maxsplit=1)[0] in json.loads(answer)["error"]["message"]
    assert len(failures) == 1


def test_an_engine_that_dies_mid_stream_ends_the_stream_with_an_error_event() -> None:
    engine = ScriptedEngine(script=("one ", RuntimeErrorAsEngineFailure("The engine stopped because a step failed.")))
    failures: list[MidwatchError] = []
    with serve(engine.open, failures) as url:
        await_health(url, 200)
        status, _, answer = chat(url, stream=True)
        events = [line for line in answer.decode().split("\n\n") if line]
        assert status == 200
        assert "one " in events[1]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        assert "[DONE]" not in answer.decode()
        engine.healthy = False
        assert health(url)[1]["status"] == "failed"


class RuntimeErrorAsEngineFailure(ProviderError):
    """What the asynchronous engine raises when a step failed."""


def test_the_openai_client_raises_when_a_stream_breaks() -> None:
    engine = ScriptedEngine(script=("one ", ProviderError("The engine stopped.")))
    with serve(engine.open) as url:
        await_health(url, 200)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="scripted", messages=CHAT["messages"], stream=True)
            with pytest.raises(openai.APIError, match="The engine stopped"):
                list(stream)


def test_an_engine_that_dies_before_the_first_token_is_a_503_and_is_reported() -> None:
    engine = ScriptedEngine(script=(ProviderError("The engine stopped."),))
    failures: list[MidwatchError] = []
    with serve(engine.open, failures) as url:
        await_health(url, 200)
        engine.healthy = False
        for stream in (True, False):
            status, _, answer = chat(url, stream=stream)
            assert status == 503
            assert "Traceback" not in answer.decode()
    assert len(failures) == 1


def test_a_full_queue_is_a_429_that_says_when_to_come_back() -> None:
    engine = ScriptedEngine(script=(RequestError("The engine is full.", "Try again soon.", status=429),))
    with serve(engine.open) as url:
        await_health(url, 200)
        status, headers, answer = chat(url, stream=True)
    assert (status, headers["retry-after"]) == (429, "1")
    assert json.loads(answer)["error"]["type"] == "rate_limit_error"
    assert json.loads(answer)["error"]["code"] == "rate_limit_exceeded"


def test_a_fault_of_ours_is_a_500_without_a_trace() -> None:
    engine = ScriptedEngine(script=(KeyError("secret-internals"),))
    with serve(engine.open) as url:
        await_health(url, 200)
        status, _, answer = chat(url)
    assert (status, json.loads(answer)["error"]["code"]) == (500, "internal_error")
    assert b"secret-internals" not in answer


def _send_raw(url: str, **fields: object) -> socket.socket:
    body = json.dumps({**CHAT, **fields})
    caller = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    caller.sendall((head + body).encode())
    return caller


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_caller_that_hangs_up_stops_the_work_before_the_next_step(stream: bool, steps_before: int) -> None:
    engine = ScriptedEngine(script=tuple(f"{number} " for number in range(50)), paced=True)
    with serve(engine.open) as url:
        await_health(url, 200)
        caller = _send_raw(url, stream=stream)
        assert engine.in_step.wait(10)
        engine.release(steps_before)
        while engine.steps < steps_before:
            time.sleep(0.001)
        assert not engine.closed.is_set()
        caller.close()
        assert engine.closed.wait(10), "the work went on after the caller left"
        assert engine.steps == steps_before
        metrics = call(url, "GET", "/metrics")[2].decode()
    assert 'vllm:request_success_total{finished_reason="abort",model_name="scripted"} 1.0' in metrics


def test_tokens_are_sent_as_they_come() -> None:
    engine = ScriptedEngine(paced=True)
    with serve(engine.open) as url:
        await_health(url, 200)
        with _send_raw(url, stream=True) as caller:
            assert engine.in_step.wait(10)
            engine.release()
            received = b""
            while b"one " not in received:
                received += caller.recv(4096)
            assert b"two " not in received
            engine.release(2)
            while b"[DONE]" not in received:
                received += caller.recv(4096)


def test_an_answer_in_flight_is_finished_when_the_server_is_asked_to_stop() -> None:
    engine = ScriptedEngine(paced=True)
    with serve(engine.open) as url:
        await_health(url, 200)
        caller = _send_raw(url, stream=True)
        assert engine.in_step.wait(10)
        engine.release(3)  # the steps happen while the server is already stopping
    received = b""
    while data := caller.recv(4096):
        received += data
    caller.close()
    assert b"three" in received
    assert b"[DONE]" in received


def test_a_server_that_is_asked_to_stop_finishes_what_runs_and_sends_the_rest_elsewhere() -> None:
    engine = ScriptedEngine(paced=True)
    app = create_app("scripted", engine.open)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = DrainingServer(uvicorn.Config(app, log_level="critical"), app.state.host, drain_s=20)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    await_health(url, 200)
    with _send_raw(url, stream=True) as caller:
        assert engine.in_step.wait(10)
        server.handle_exit(signal.SIGTERM, None)
        assert await_health(url, 503) == {"status": "draining", "model": "scripted"}
        status, headers, answer = chat(url)
        assert (status, json.loads(answer)["error"]["code"]) == (503, "draining")
        assert headers["retry-after"] == "1"
        engine.release(3)
        received = b""
        while data := caller.recv(4096):
            received += data
    assert b"[DONE]" in received
    thread.join(10)
    assert not thread.is_alive()


def test_an_answer_that_does_not_end_does_not_keep_the_server() -> None:
    engine = ScriptedEngine(paced=True)
    app = create_app("scripted", engine.open)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0.1)
    server = DrainingServer(config, app.state.host, drain_s=0.1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    await_health(url, 200)
    with _send_raw(url, stream=True):
        assert engine.in_step.wait(10)
        server.handle_exit(signal.SIGTERM, None)
        thread.join(10)
    assert not thread.is_alive()
    assert engine.closed.is_set()


def test_what_is_asked_reaches_the_engine_as_it_was_asked() -> None:
    engine = ScriptedEngine()
    with serve(engine.open) as url:
        await_health(url, 200)
        fields = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "seed": 11,
            "stop": "x",
            "max_completion_tokens": 9,
            "logprobs": True,
            "response_format": {"type": "json_object"},
            "ignore_eos": True,
        }
        assert chat(url, **fields)[0] == 200
        assert chat(url)[0] == 200
    (_, params), (_, defaults) = engine.seen
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.9, 7, 11)
    assert (params.stop, params.max_tokens, params.logprobs) == (("x",), 9, 0)
    assert (params.json_schema, params.ignore_eos) == ({"type": "object"}, True)
    assert (defaults.temperature, defaults.top_p, defaults.seed, defaults.logprobs) == (1.0, 1.0, None, None)
    assert defaults.max_tokens > 1_000_000


def test_the_metrics_parse_and_bear_vllm_s_names() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with serve(ScriptedEngine().open) as url:
        await_health(url, 200)
        chat(url)
        status, headers, page = call(url, "GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(page.decode())}
    assert names >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:prompt_tokens",
        "vllm:generation_tokens",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:e2e_request_latency_seconds",
        "vllm:request_success",
    }
