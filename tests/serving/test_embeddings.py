from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from http_calls import await_health, post
from scripted_engine import ScriptedEngine, serve


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ScriptedEngine, str]]:
    engine = ScriptedEngine()
    with serve(engine.open) as url:
        await_health(url, 200)
        yield engine, url


def test_texts_and_ids_are_embedded_in_order(served: tuple[ScriptedEngine, str]) -> None:
    _, url = served
    for given in (["a", "bc"], [[97], [98, 99]]):
        status, answer = post(url, "/v1/embeddings", input=given)
        assert status == 200
        assert [item["embedding"] for item in answer["data"]] == [[97.0, 0.5, -1.0], [197.0, 0.5, -1.0]]
        assert [item["index"] for item in answer["data"]] == [0, 1]
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        assert answer["model"] == "scripted"


def test_base64_holds_little_endian_float32(served: tuple[ScriptedEngine, str]) -> None:
    _, answer = post(served[1], "/v1/embeddings", input="a", encoding_format="base64")
    assert np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4").tolist() == [97.0, 0.5, -1.0]


def test_the_openai_client_reads_them(served: tuple[ScriptedEngine, str]) -> None:
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="scripted", input=["a", "b"] * 40)
    assert [item.embedding[0] for item in answer.data] == [97.0, 98.0] * 40


def test_pooling_and_normalizing_are_the_caller_s_choice(served: tuple[ScriptedEngine, str]) -> None:
    engine, url = served
    engine.options.clear()
    post(url, "/v1/embeddings", input="a")
    post(url, "/v1/embeddings", input="a", pooling="last", normalize=False)
    assert [(options["pooling"], options["normalize"]) for options in engine.options] == [
        ("mean", True),
        ("last", False),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": {}}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": "x" * 101}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "a", "pooling": "max"}, "pooling"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_embedded_is_named(
    served: tuple[ScriptedEngine, str], fields: dict[str, object], param: str
) -> None:
    status, answer = post(served[1], "/v1/embeddings", **fields)
    assert (status, answer["error"]["param"]) == (400, param)
    assert post(served[1], "/v1/embeddings", input="a", dimensions=3)[0] == 200
