from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_models import MakeEngine, answer, answers, run_all, write_tiny_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.engine.cpu.build import why_unavailable
from midwatch.engine.engine import Engine
from midwatch.engine.request import SamplingParams
from midwatch.errors import RequestError
from midwatch.settings import EngineSettings

PROMPT = "ERROR checkout: upstream timed out after 30 s while reading response header from 10.0.3.17:8443. " * 3


def test_decode_with_a_cache_equals_computing_the_whole_text(smollm2: MakeEngine) -> None:
    engine = smollm2()
    ids = engine.tokenizer.encode(PROMPT)
    cached = answer(engine, ids, max_tokens=12, logprobs=0, ignore_eos=True)
    whole = torch.log_softmax(engine.prompt_logits([*ids, *cached.token_ids]), -1)
    for index, item in enumerate(cached.logprobs):
        row = whole[len(ids) - 1 + index]
        assert int(row.argmax()) == item.token_id
        assert abs(float(row[item.token_id]) - item.logprob) < 1e-4


@pytest.mark.parametrize("budget", [16, 50])
def test_a_prompt_in_chunks_equals_the_whole_prompt(smollm2: MakeEngine, budget: int) -> None:
    whole, chunked = smollm2(), smollm2(max_num_batched_tokens=budget)
    ids = whole.tokenizer.encode(PROMPT)
    assert len(ids) > budget
    one, other = (answer(engine, ids, max_tokens=6, logprobs=3) for engine in (whole, chunked))
    assert one.token_ids == other.token_ids
    for a, b in zip(one.logprobs, other.logprobs, strict=True):
        assert abs(a.logprob - b.logprob) < 1e-4
        assert [item.token_id for item in a.top] == [item.token_id for item in b.top]


def test_a_request_in_a_batch_equals_the_request_alone(smollm2: MakeEngine) -> None:
    texts = ["Disk /var is 98 % full", PROMPT, "Why?", "certificate has expired: notAfter=Nov 22"]
    params = [
        SamplingParams(max_tokens=8, logprobs=1, temperature=temperature, seed=seed, top_p=top_p)
        for temperature, seed, top_p in ((0, None, 1), (0.9, 7, 0.8), (1.2, 8, 1), (0, 1, 1))
    ]
    engine = smollm2()
    requests = [(engine.tokenizer.encode(text), param) for text, param in zip(texts, params, strict=True)]
    together = answers(smollm2(max_num_batched_tokens=32), requests)
    for request, batched in zip(requests, together, strict=True):
        alone = answers(engine, [request])[0]
        assert alone.token_ids == batched.token_ids
        assert alone.text == batched.text
        for a, b in zip(alone.logprobs, batched.logprobs, strict=True):
            assert abs(a.logprob - b.logprob) < 1e-4


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_every_weight_type_runs_by_the_quick_kernels_near_the_reference(
    tmp_path: Path, quantization: str, tied: bool, kernels: str
) -> None:
    if kernels == "native" and (reason := why_unavailable(None)):
        pytest.skip(reason)
    path = write_tiny_gguf(tmp_path / "model.gguf", quantization=quantization, tied=tied)
    exact = Engine.load(path, EngineSettings(threads=1, dtype="float32", quantization="none"))
    quick = Engine.load(path, EngineSettings(threads=1, kernels=kernels))
    assert quick.backend.name == kernels
    ids = exact.tokenizer.encode("the pool is exhausted")
    expected = torch.log_softmax(exact.prompt_logits(ids), -1)
    for chunk_tokens in (None, 1, 5):
        found = torch.log_softmax(quick.prompt_logits(ids, chunk_tokens), -1)
        divergence = (expected.exp() * (expected - found)).sum(-1)
        # PyTorch keeps activations in bfloat16 and is near in every row; the C step keeps them in eight bits.
        assert (divergence.max() if kernels == "torch" else divergence.mean()) < 0.01, chunk_tokens


def test_a_seed_makes_an_answer_repeatable_and_another_seed_another(tiny: MakeEngine) -> None:
    engine = tiny()
    ids = engine.tokenizer.encode("abc")
    runs = [answer(engine, ids, max_tokens=20, temperature=1.0, seed=seed).token_ids for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mix_of_requests_gives_what_each_gives_alone(tiny: MakeEngine, data: st.DataObject) -> None:
    engine = tiny(
        max_num_seqs=data.draw(st.integers(1, 4), "max_num_seqs"),
        max_num_batched_tokens=data.draw(st.integers(16, 40), "max_num_batched_tokens"),
    )
    alone = tiny()
    requests = data.draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 259), min_size=1, max_size=50),
                st.builds(
                    SamplingParams,
                    max_tokens=st.integers(1, 9),
                    temperature=st.sampled_from([0.0, 1.0]),
                    seed=st.integers(0, 9),
                    stop_token_ids=st.just((7,)),
                    ignore_eos=st.booleans(),
                ),
            ),
            min_size=1,
            max_size=6,
        )
    )
    for request, batched in zip(requests, answers(engine, requests), strict=True):
        single = answers(alone, [request])[0]
        assert (single.token_ids, single.text) == (batched.token_ids, batched.text)
        assert single.last.finish_reason == batched.last.finish_reason
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_slots_used, stats.kv_slots_allocated) == (0, 0, 0, 0)


def test_text_ends_before_a_stop_string_even_across_tokens(smollm2: MakeEngine) -> None:
    engine = smollm2()
    ids = engine.chat_prompt([{"role": "user", "content": "What is a database?"}])
    free = answer(engine, ids, max_tokens=24)
    for start, size in ((9, 4), (13, 11), (20, 1), (31, 17)):
        stop = free.text[start : start + size]
        cut = answer(engine, ids, max_tokens=24, stop=("never this", stop))
        assert cut.text == free.text[: free.text.find(stop)]
        assert cut.last.finish_reason == "stop"


def test_text_that_only_begins_like_a_stop_string_is_given_in_the_end(smollm2: MakeEngine) -> None:
    engine = smollm2()
    ids = engine.chat_prompt([{"role": "user", "content": "What is a database?"}])
    free = answer(engine, ids, max_tokens=10)
    teased = answer(engine, ids, max_tokens=10, stop=(free.text[-6:] + "\x00",))
    assert teased.text == free.text
    assert teased.last.finish_reason == "length"
    assert teased.outputs[-2].text_delta == "" or len(teased.outputs[-1].text_delta) >= 6


def test_the_end_of_turn_is_counted_but_not_shown(tiny: MakeEngine) -> None:
    engine = tiny()
    ids = engine.tokenizer.encode("abc")
    free = answer(engine, ids, max_tokens=5)
    stopped = answer(engine, ids, max_tokens=5, stop_token_ids=(free.token_ids[2],))
    shown = free.token_ids[: free.token_ids.index(free.token_ids[2])]
    assert stopped.token_ids == shown
    assert stopped.last.completion_tokens == len(shown) + 1
    assert stopped.last.finish_reason == "stop"


def test_an_answer_ends_where_the_context_ends(tiny: MakeEngine) -> None:
    engine = tiny(max_model_len=40)
    long = answer(engine, [5] * 30, max_tokens=500, ignore_eos=True)
    assert (long.last.completion_tokens, long.last.finish_reason) == (10, "length")
    edge = answer(engine, [5] * 39, max_tokens=500, ignore_eos=True)
    assert edge.last.completion_tokens == 1
    with pytest.raises(RequestError, match="40 tokens; the context holds 40") as caught:
        answer(engine, [5] * 40)
    assert caught.value.status == 400


@pytest.mark.parametrize("ids", [[], [-1], [260], [3, 10**9]])
def test_a_prompt_of_no_or_unknown_tokens_is_refused(tiny: MakeEngine, ids: list[int]) -> None:
    with pytest.raises(RequestError):
        tiny().add_request(ids, SamplingParams())


def test_a_full_queue_is_a_429(tiny: MakeEngine) -> None:
    engine = tiny(max_num_seqs=2, max_waiting=3)
    for _ in range(5):
        engine.add_request([5], SamplingParams(max_tokens=2))
    with pytest.raises(RequestError, match="2 requests run, 3 wait") as caught:
        engine.add_request([5], SamplingParams())
    assert caught.value.status == 429
    assert sum(output.finish_reason is not None for output in run_all(engine)) == 5
    engine.add_request([5], SamplingParams(max_tokens=1))


def test_an_abort_frees_everything_at_once(tiny: MakeEngine) -> None:
    engine = tiny(max_num_seqs=1)
    first = engine.add_request([5, 6], SamplingParams(max_tokens=100, ignore_eos=True))
    second = engine.add_request([5, 6], SamplingParams(max_tokens=2, ignore_eos=True))
    engine.step()
    assert engine.stats().kv_slots_used == 2
    assert engine.abort(first)
    assert not engine.abort(first)
    assert engine.stats().kv_slots_allocated == 0
    assert {output.request_id for output in run_all(engine)} == {second}
    assert engine.stats().aborted_total == 1


def test_the_counters_add_up(tiny: MakeEngine) -> None:
    engine = tiny()
    for size in (3, 30):
        answer(engine, [9] * size, max_tokens=4, ignore_eos=True)
    stats = engine.stats()
    assert (stats.prompt_tokens_total, stats.generation_tokens_total, stats.requests_total) == (33, 8, 2)
    assert stats.steps_total == 8
    assert stats.step_seconds_total > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": True},
        {"max_tokens": 1.5},
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"seed": 2**64},
        {"seed": "x"},
        {"logprobs": 21},
        {"logprobs": -1},
        {"stop": ("",)},
        {"stop": ("x" * 300,)},
        {"stop": ("x",) * 17},
        {"stop_token_ids": (-1,)},
        {"json_schema": []},
    ],
)
def test_a_wrong_parameter_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**wrong)
    assert caught.value.param == next(iter(wrong))
    assert "allowed" in str(caught.value)


SCHEMAS = [
    {
        "type": "object",
        "properties": {"category": {"enum": ["oom", "dns", "disk"]}},
        "required": ["category"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "summary": {"type": "string", "maxLength": 40},
            "evidence": {"type": "array", "items": {"enum": ["L1", "L2", "L3"]}, "maxItems": 2},
            "where": {
                "type": "object",
                "properties": {"line": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["line"],
                "additionalProperties": False,
            },
        },
        "required": ["summary", "evidence", "where"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"const": {"fixed": ["wholly", 1, None]}},
    {"type": "string", "maxLength": 12},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:30])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "hot"])
def test_an_answer_under_a_schema_parses_and_fits_it(smollm2: MakeEngine, schema: dict, sampling: dict) -> None:
    engine = smollm2()
    ids = engine.chat_prompt([{"role": "user", "content": "Why did the pod restart? L1: OOMKilled"}])
    made = answer(engine, ids, max_tokens=120, json_schema=schema, logprobs=2, **sampling)
    assert made.last.finish_reason == "stop"
    value = json.loads(made.text)
    check(value, schema)
    assert b"".join(item.token for item in made.logprobs).decode() == made.text


def check(value: object, schema: dict) -> None:
    """The parts of JSON Schema that the schemas above use."""
    if "enum" in schema:
        assert value in schema["enum"]
    if "const" in schema:
        assert value == schema["const"]
    if "anyOf" in schema:
        assert value is None or isinstance(value, bool)
    kind = schema.get("type")
    if kind == "object":
        assert set(value) == set(schema["required"])
        for key, part in schema["properties"].items():
            check(value[key], part)
    if kind == "array":
        assert schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
        for item in value:
            check(item, schema["items"])
    if kind == "string":
        assert isinstance(value, str)
        assert len(value) <= schema["maxLength"]
    if kind == "integer":
        assert schema["minimum"] <= value <= schema["maximum"]


def test_forced_tokens_cost_no_step_and_have_probability_one(smollm2: MakeEngine) -> None:
    engine = smollm2()
    ids = engine.tokenizer.encode("Answer:")
    made = answer(engine, ids, max_tokens=60, json_schema=SCHEMAS[0], logprobs=2)
    forced = [item for item in made.logprobs if item.forced]
    assert len(forced) >= 4
    assert all(item.logprob == 0.0 and item.top == () for item in forced)
    assert len(made.outputs) < len(made.token_ids)
    choices = [item for item in made.logprobs if not item.forced]
    assert all(item.top and item.logprob <= 0 for item in choices)
    assert abs(sum(2.718281828**item.logprob for item in choices[0].top)) <= 1 + 1e-4


def test_an_answer_without_any_choice_needs_no_step(smollm2: MakeEngine) -> None:
    engine = smollm2()
    before = engine.stats().steps_total
    made = answer(engine, engine.tokenizer.encode("x"), json_schema=SCHEMAS[3])
    assert json.loads(made.text) == SCHEMAS[3]["const"]
    assert made.last.completion_tokens == len(made.token_ids)
    assert engine.stats().steps_total == before


def test_a_schema_cut_by_max_tokens_says_length(smollm2: MakeEngine) -> None:
    engine = smollm2()
    made = answer(engine, engine.tokenizer.encode("x"), max_tokens=2, json_schema=SCHEMAS[1])
    assert made.last.finish_reason == "length"
    assert made.last.completion_tokens == 2


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objct"},
        {"enum": []},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"$ref": "#/nope"},
        {"type": "array", "uniqueItems": True},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"enum": ["x" * 300_000]},
        {"default": float},
        {"pattern": "(", "type": "string"},
    ],
)
def test_a_schema_that_cannot_be_used_is_a_400(smollm2: MakeEngine, schema: dict) -> None:
    engine = smollm2()
    with pytest.raises(RequestError, match="schema cannot be used") as caught:
        engine.add_request([5], SamplingParams(json_schema=schema))
    assert caught.value.status == 400
    assert not engine.has_work


def test_a_schema_nested_without_end_is_a_400(smollm2: MakeEngine) -> None:
    schema: dict = {"type": "null"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError):
        smollm2().add_request([5], SamplingParams(json_schema=schema))
