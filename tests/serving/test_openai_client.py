"""The official `openai` client against the real server and the real weights."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serve_process import MODEL

pytestmark = pytest.mark.weights

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "severity": {"enum": ["low", "high"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["severity", "count"],
    "additionalProperties": False,
}


@pytest.fixture
def client(real_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage.prompt_tokens > 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_says_the_same_as_a_whole_one(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, temperature=0)
    events = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert events[0].choices[0].delta.role == "assistant"
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "stop"
    assert (events[-1].choices, events[-1].usage) == ([], whole.usage)
    assert len({event.id for event in events}) == 1


def test_a_stream_without_the_option_carries_no_usage(client: openai.OpenAI) -> None:
    events = list(client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=3, stream=True))
    assert all(event.choices and event.usage is None for event in events)


async def test_the_asynchronous_client_is_served_side_by_side(real_url: str) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=16, temperature=0)
                for _ in range(4)
            )
        )
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=16, temperature=0, stream=True
        )
        streamed = "".join([event.choices[0].delta.content or "" async for event in stream])
    texts = {answer.choices[0].message.content for answer in answers}
    assert all("Paris" in text for text in texts | {streamed})


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell a story."}],
            max_tokens=16,
            temperature=1.0,
            seed=seed,
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_is_kept(client: openai.OpenAI, stream: bool) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "How bad is it, and how many?"}],
        max_tokens=40,
        temperature=1.0,
        seed=3,
        stream=stream,
        response_format={"type": "json_schema", "json_schema": {"name": "alarm", "strict": True, "schema": SCHEMA}},
    )
    if stream:
        text = "".join(event.choices[0].delta.content or "" for event in answer)
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
    value = json.loads(text)
    assert set(value) == {"severity", "count"}
    assert value["severity"] in {"low", "high"}
    assert 0 <= value["count"] <= 99


def test_a_json_object_is_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Give one short JSON object."}],
        max_tokens=120,
        temperature=0,
        response_format={"type": "json_object"},
    )
    assert answer.choices[0].message.content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs_have_openai_s_shape(client: openai.OpenAI, stream: bool) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, stream=stream
    )
    if stream:
        chunks = [event.choices[0] for event in answer]
        items = [item for choice in chunks if choice.logprobs for item in choice.logprobs.content]
    else:
        items = answer.choices[0].logprobs.content
    assert len(items) == 6
    for item in items:
        assert bytes(item.bytes).decode() == item.token
        assert len(item.top_logprobs) == 3
        assert item.logprob == item.top_logprobs[0].logprob <= 0


def test_a_text_completion_is_answered_whole_and_streamed(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    choice = whole.choices[0]
    assert choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 8
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[:2] == [0, len(choice.logprobs.tokens[0])]
    assert len(choice.logprobs.top_logprobs[0]) == 2
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].text for event in events if event.choices) == choice.text
    assert events[-1].usage == whole.usage


def test_a_prompt_of_token_ids_is_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=[100, 200, 300], max_tokens=2)
    assert answer.usage.prompt_tokens == 3


@pytest.mark.parametrize("stop", ["a", ["zzz", "a"]])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI, stop: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, temperature=0, stop=stop)
    assert answer.choices[0].finish_reason == "stop"
    assert "a" not in answer.choices[0].message.content


def test_content_in_parts_and_a_developer_s_message_are_read(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": text} for text in ("What is the capital", " of France?")]
    messages: list[Any] = [{"role": "developer", "content": "You are terse."}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=12, temperature=0)
    assert answer.choices[0].message.content


def test_the_model_is_listed_and_found_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "triage"]
    assert client.models.retrieve(MODEL).owned_by == "midwatch"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


EXPLODING = {"allOf": [{"type": "string", "pattern": f"^.*a.{{{size}}}b.*$"} for size in range(1, 30)]}
NOTHING = {"allOf": [{"type": "string"}, {"type": "integer"}]}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 100_000}, "n", "from 1 to 64"),
    ({"temperature": -1}, "temperature", "allowed is a number from 0"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"stop": [""]}, "stop", "1 to 256 characters"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 99}, "logprobs", "0 to 20"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "cannot honour"),
    ({"frequency_penalty": 3.0}, "frequency_penalty", "from -2 to 2"),
    ({"logit_bias": {"49152": 1}}, "logit_bias", "49151"),
    ({"extra_body": {"stop_token_ids": [-1]}}, "stop_token_ids", "token ids"),
    ({"stop": ["stop"] * 10_000}, "stop", "up to 16"),
    ({"extra_body": {"guided_regex": "(a"}}, "regex", "unclosed"),
    ({"extra_body": {"guided_grammar": "begin: a"}}, "grammar", "start"),
    ({"extra_body": {"guided_regex": "a", "guided_grammar": "b"}}, "guided_grammar", "together"),
    ({"extra_body": {"surprise": 1}}, "surprise", "cannot honour"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages", "'system'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages", "parts"),
    ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages", "the context holds 8192"),
    ({"messages": [{"role": "user", "content": "x" * 3_000_000}]}, "messages", "the context holds 8192"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "lacks its json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        "response_format",
        "schema cannot be used",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": EXPLODING}}},
        "response_format",
        "to compile",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": NOTHING}}},
        "response_format",
        "nsatisfiable",
    ),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
]


@pytest.mark.parametrize(("change", "param", "says"), WRONG, ids=[f"{item[1]}-{item[2][:20]}" for item in WRONG])
def test_a_wrong_request_names_the_field_and_what_is_allowed(
    client: openai.OpenAI, change: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 4, **change})
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert says in caught.value.message


def test_a_wrong_stream_is_refused_before_it_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the context holds"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 9000}], stream=True)


def test_several_prompts_at_once_are_answered_as_each_alone(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "The capital of France is"]
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    together = client.completions.create(prompt=prompts, **asked)
    alone = [client.completions.create(prompt=prompt, **asked) for prompt in prompts]
    assert [choice.text for choice in together.choices] == [answer.choices[0].text for answer in alone]
    assert [choice.index for choice in together.choices] == [0, 1]
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)


def test_several_answers_differ_and_each_is_what_its_seed_gives(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 1.5}
    several = client.chat.completions.create(n=4, seed=10, **asked)
    texts = [choice.message.content for choice in several.choices]
    assert len(set(texts)) > 1
    alone = client.chat.completions.create(seed=12, **asked)
    assert texts[2] == alone.choices[0].message.content
    streamed = [""] * 4
    for event in client.chat.completions.create(n=4, seed=10, stream=True, **asked):
        for choice in event.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_bias_of_a_hundred_decides_and_of_minus_a_hundred_bars(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}
    usual = client.completions.create(**asked, logprobs=1).choices[0]
    forced = client.completions.create(**asked, logit_bias={"1000": 100}, logprobs=1).choices[0]
    assert len(set(forced.logprobs.tokens)) == 1
    first = client.completions.create(**asked, extra_body={"prompt_logprobs": 0}).choices[0]
    assert first.text == usual.text
    token = json.loads(_post(client, "/tokenize", {"prompt": usual.logprobs.tokens[0]}))["tokens"][0]
    barred = client.completions.create(**asked, logit_bias={str(token): -100}).choices[0]
    assert not barred.text.startswith(usual.logprobs.tokens[0])


def test_a_regular_expression_and_a_grammar_close_an_answer(client: openai.OpenAI) -> None:
    import re

    def ask(**extra: Any) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=20, temperature=1, seed=1, extra_body=extra
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content

    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", ask(guided_regex="[0-9]{3}-[a-f]{2}"))
    assert ask(structured_outputs={"choice": ["Paris (France)", "Rome"]}) in {"Paris (France)", "Rome"}
    assert re.fullmatch(r"\(+x\)+", ask(guided_grammar='start: "(" start ")" | "(x)"'))


def test_texts_are_embedded_so_that_what_is_alike_is_near(client: openai.OpenAI) -> None:
    texts = ["The disk is full.", "There is no space left on the disk.", "She plays the violin in the evening."]
    for extra in ({}, {"pooling": "last"}):
        answer = client.embeddings.create(model=MODEL, input=texts, extra_body=extra)
        vectors = [item.embedding for item in answer.data]
        assert all(abs(sum(value * value for value in vector) - 1) < 1e-3 for vector in vectors)
        near, far = (sum(a * b for a, b in zip(vectors[0], vectors[index], strict=True)) for index in (1, 2))
        assert near > far
    alone = client.embeddings.create(model=MODEL, input=texts[1], extra_body={"pooling": "last"})
    assert sum(a * b for a, b in zip(alone.data[0].embedding, vectors[1], strict=True)) > 0.999


def test_a_prefix_that_was_computed_before_is_counted_as_cached(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "word " * 100, "max_tokens": 1}
    client.completions.create(**asked)
    usage = client.completions.create(**asked).usage
    assert 64 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_the_blocks_of_the_pool_are_shown(client: openai.OpenAI, real_url: str) -> None:
    client.completions.create(model=MODEL, prompt="word " * 100, max_tokens=1)
    with urllib.request.urlopen(f"{real_url}/engine/blocks?once=1", timeout=10) as response:
        shown = json.load(response)
    assert len(shown["states"]) == shown["num_blocks"] == len(shown["filled"])
    assert "c" in shown["states"]


def _post(client: openai.OpenAI, path: str, body: dict[str, Any]) -> bytes:
    url = str(client.base_url).removesuffix("/v1/") + path
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read()


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message


def test_fields_that_change_nothing_are_passed_over(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=2,
        user="me",
        store=False,
        n=1,
        tools=[],
        presence_penalty=0,
        logit_bias={},
        metadata={"a": "b"},
        stop=None,
    )
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_hangs_up_frees_the_engine(real_url: str, stream: bool) -> None:
    import socket
    import time
    from urllib.parse import urlsplit

    body = json.dumps(
        {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4000, "ignore_eos": True, "stream": stream}
    )
    request = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    aborted = _metric(real_url, 'vllm:request_success_total{finished_reason="abort"')
    before = _metric(real_url, "vllm:generation_tokens_total")
    with socket.create_connection((urlsplit(real_url).hostname, urlsplit(real_url).port), timeout=30) as caller:
        caller.sendall(request.encode())
        while _metric(real_url, "vllm:generation_tokens_total") <= before:
            time.sleep(0.01)
        if stream:
            assert caller.recv(20).startswith(b"HTTP/1.1 200")
        assert _metric(real_url, "vllm:num_requests_running") == 1
    deadline = time.monotonic() + 10
    while _metric(real_url, "vllm:num_requests_running") > 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert _metric(real_url, "vllm:generation_tokens_total") - before < 1000
    assert _metric(real_url, 'vllm:request_success_total{finished_reason="abort"') == aborted + 1


def test_the_metrics_count_what_was_served(client: openai.OpenAI, real_url: str) -> None:
    names = (
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        'vllm:request_success_total{finished_reason="length"',
    )
    before = [_metric(real_url, name) for name in names]
    usage = client.completions.create(model=MODEL, prompt="Count with me: one, two,", max_tokens=5, temperature=0).usage
    after = [_metric(real_url, name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [usage.prompt_tokens, 5, 1, 1, 1]


async def test_the_gateway_s_own_client_reads_the_same_answer(real_url: str) -> None:
    from midwatch.gateway.providers import OpenAIProvider
    from midwatch.gateway.wire import ChatRequest, Message
    from midwatch.settings import ProviderSettings

    provider = OpenAIProvider(ProviderSettings(base_url=f"{real_url}/v1", model=MODEL), name="local", remote=False)
    try:
        asked = ChatRequest(
            messages=(Message(role="user", content="How bad?"),), max_tokens=40, json_schema=SCHEMA, top_logprobs=2
        )
        answer = await provider.complete(asked)
    finally:
        await provider.aclose()
    assert set(json.loads(answer.text)) == {"severity", "count"}
    assert "".join(item.token for item in answer.logprobs) == answer.text
    assert (answer.finish_reason, answer.model) == ("stop", MODEL)
    assert answer.prompt_tokens > 0
    assert answer.completion_tokens >= len(answer.logprobs)
