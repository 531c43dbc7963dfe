"""The server over the real engine and a tiny random model: adapters, deadlines, and bad requests beside good ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from http_calls import await_health, events, get, post
from scripted_engine import serve

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
from adapters import write_adapter
from engine_models import write_tiny_gguf

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.serving.server import open_engine
from midwatch.settings import EngineSettings

CHAT = [{"role": "user", "content": "hi"}]
EXPLODING = "(.*a.{20}b|.*b.{20}c|.*c.{20}d)*"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    model = write_tiny_gguf(folder / "tiny.gguf")
    config = open_checkpoint(model).config
    other = open_checkpoint(write_tiny_gguf(folder / "tied.gguf", tied=True)).config
    write_adapter(folder / "adapters" / "first", config, seed=1)
    write_adapter(folder / "adapters" / "second", config, seed=2)
    write_adapter(folder / "adapters" / "stranger", _wider(other), seed=3)
    settings = EngineSettings(
        model=str(model),
        kernels="torch",
        threads=1,
        dtype="float32",
        quantization="none",
        adapters={"first": folder / "adapters" / "first"},
        adapter_dir=folder / "adapters",
        max_num_seqs=4,
    )
    with serve(lambda: open_engine(settings, folder)) as url:
        await_health(url, 200)
        yield url


def _wider(config: object) -> object:
    from dataclasses import replace

    return replace(config, hidden_size=96)  # type: ignore[type-var]


def say(url: str, **fields: object) -> str:
    status, answer = post(url, "/v1/completions", prompt="abc abc", max_tokens=12, temperature=0, **fields)
    assert status == 200, answer
    text: str = answer["choices"][0]["text"]
    return text


def test_adapters_are_loaded_at_the_start_and_while_the_server_runs_and_change_the_answer(url: str) -> None:
    base = say(url)
    first = say(url, model="first")
    assert first != base
    assert post(url, "/v1/load_lora_adapter", lora_name="late", lora_path="second")[0] == 200
    assert say(url, model="late") not in {base, first}
    assert [card["id"] for card in get(url, "/v1/models")[1]["data"]][1:] == ["first", "late"]
    assert post(url, "/v1/load_lora_adapter", lora_name="late", lora_path="second")[0] == 409
    assert post(url, "/v1/unload_lora_adapter", lora_name="late")[0] == 200
    assert post(url, "/v1/completions", prompt="a", model="late")[0] == 404
    assert say(url) == base


def test_an_adapter_for_another_base_is_refused(url: str) -> None:
    status, answer = post(url, "/v1/load_lora_adapter", lora_name="stranger", lora_path="stranger")
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert get(url, "/health")[0] == 200


def test_a_deadline_ends_an_answer_that_takes_too_long(url: str) -> None:
    status, answer = post(url, "/v1/completions", prompt="abc", max_tokens=240, ignore_eos=True, timeout_s=0.02)
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")


BAD: list[tuple[str, dict[str, object], int]] = [
    ("/v1/completions", {"prompt": "x" * 300}, 400),
    ("/v1/completions", {"prompt": "x" * 200_000}, 400),
    ("/v1/completions", {"prompt": ""}, 400),
    ("/v1/completions", {"prompt": [999_999]}, 400),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400),
    ("/v1/completions", {"prompt": "a", "temperature": "NaN"}, 400),
    ("/v1/completions", {"prompt": "a", "stop": ["x"] * 10_000}, 400),
    ("/v1/completions", {"prompt": "a", "n": 10_000}, 400),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"260": 1}}, 400),
    ("/v1/completions", {"prompt": "a", "model": "gpt-5"}, 404),
    ("/v1/completions", {"prompt": "a", "guided_json": {"allOf": [{"type": "string"}, {"type": "null"}]}}, 400),
    ("/v1/completions", {"prompt": "a", "guided_grammar": "start: ("}, 400),
    ("/v1/completions", {"prompt": "a", "guided_regex": EXPLODING, "max_tokens": 200, "logit_bias": {}}, 0),
    ("/v1/embeddings", {"input": ""}, 400),
    ("/v1/embeddings", {"input": "x" * 300}, 400),
    ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "../tiny.gguf"}, 403),
    ("/tokenize", {"prompt": 5}, 400),
]


def test_bad_requests_get_errors_in_openai_s_shape_while_others_go_on(url: str) -> None:
    alone = say(url)

    def bad(item: tuple[str, dict[str, object], int]) -> tuple[int, int, object]:
        path, fields, expected = item
        status, answer = post(url, path, **fields)
        return expected, status, answer

    with ThreadPoolExecutor(8) as pool:
        stream = pool.submit(post, url, "/v1/completions", prompt="abc", max_tokens=200, ignore_eos=True, stream=True)
        answered = [pool.submit(bad, item) for item in BAD]
        good = [pool.submit(say, url) for _ in range(4)]
        for future in answered:
            expected, status, answer = future.result()
            if expected:
                assert status == expected, answer
                assert set(answer["error"]) == {"message", "type", "param", "code"}
            else:
                assert status in {200, 422}, answer  # it ends, in a text or in an error, and never hangs
        assert [future.result() for future in good] == [alone] * 4
        status, text = stream.result()
    assert status == 200
    assert events(text)[-1]["choices"][0]["finish_reason"] == "length"
    assert get(url, "/health")[0] == 200


def test_embeddings_come_from_the_model(url: str) -> None:
    _, answer = post(url, "/v1/embeddings", input=["abc", "abc", "xyz"])
    one, same, other = (item["embedding"] for item in answer["data"])
    assert len(one) == 64
    assert max(abs(a - b) for a, b in zip(one, same, strict=True)) < 1e-4
    assert abs(sum(value * value for value in one) - 1) < 1e-4
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-2


def test_the_pool_is_shown_while_it_is_used(url: str) -> None:
    say(url)
    _, shown = get(url, "/engine/blocks?once=1")
    assert len(shown["states"]) == shown["num_blocks"]
    assert set(shown["states"]) <= set("fcu")
    assert json.dumps(shown)
