"""What requests may ask beyond one answer: several, scored, embedded, urgent, timed; and that memory stays whole."""

from __future__ import annotations

import math
import random

import pytest
import torch
from batches import Part, make_batch
from engine_models import Answer, MakeEngine, answer, answers, run_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midwatch.engine.batch import FROM_PREVIOUS, Batch, Forward
from midwatch.engine.engine import Engine
from midwatch.engine.request import Output, SamplingParams
from midwatch.errors import RequestError
from midwatch.settings import EngineSettings

PROMPT = [3 + place % 250 for place in range(70)]


def by_answer(outputs: list[Output]) -> list[Answer]:
    indexes = sorted({output.index for output in outputs})
    return [Answer([output for output in outputs if output.index == index]) for index in indexes]


def several(engine: Engine, prompt_ids: list[int], **params: object) -> list[Answer]:
    engine.add_request(prompt_ids, SamplingParams(**params))
    return by_answer(list(run_all(engine)))


def test_several_answers_are_those_of_as_many_requests_with_the_following_seeds(tiny: MakeEngine) -> None:
    engine = tiny()
    together = several(engine, PROMPT, n=4, seed=5, temperature=1.0, max_tokens=12, ignore_eos=True)
    for index, made in enumerate(together):
        alone = answer(tiny(), PROMPT, seed=5 + index, temperature=1.0, max_tokens=12, ignore_eos=True)
        assert made.token_ids == alone.token_ids
    assert len({tuple(made.token_ids) for made in together}) > 1
    assert engine.stats().kv_slots_allocated == 0
    engine.pool.check_integrity()


def test_a_prompt_with_several_answers_is_computed_once_and_held_once(tiny: MakeEngine) -> None:
    engine = tiny()
    engine.add_request(PROMPT, SamplingParams(n=4, max_tokens=5, temperature=1.0, seed=0, ignore_eos=True))
    engine.step()
    engine.step()
    stats = engine.stats()
    assert stats.running == 4
    assert stats.last_step_tokens == 4
    assert stats.kv_slots_used == 64 + 4 * 7  # four whole blocks are shared, the fifth was copied on writing
    assert stats.kv_slots_shared == 3 * 64
    engine.pool.check_integrity()
    list(run_all(engine))


def test_more_answers_than_seats_all_come(tiny: MakeEngine) -> None:
    engine = tiny(max_num_seqs=2)
    made = several(engine, PROMPT, n=5, seed=1, temperature=1.0, max_tokens=6, ignore_eos=True)
    alone = several(tiny(), PROMPT, n=5, seed=1, temperature=1.0, max_tokens=6, ignore_eos=True)
    assert [item.token_ids for item in made] == [item.token_ids for item in alone]


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
def test_a_shared_beginning_changes_no_answer(tiny: MakeEngine, block_size: int) -> None:
    engine = tiny(block_size=block_size)
    first = answer(engine, PROMPT, max_tokens=10, ignore_eos=True)
    again = answer(engine, PROMPT, max_tokens=10, ignore_eos=True)
    fresh = answer(tiny(prefix_caching=False), PROMPT, max_tokens=10, ignore_eos=True)
    assert first.token_ids == again.token_ids == fresh.token_ids
    assert (first.last.cached_tokens, again.last.cached_tokens) == (0, 69 // block_size * block_size)
    assert engine.stats().prefix_cache_hits_total == again.last.cached_tokens


def test_who_was_pushed_out_answers_as_if_nothing_had_happened(tiny: MakeEngine) -> None:
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=3, ignore_eos=True)
    requests = [([5 + index, *PROMPT[:30]], params) for index in range(5)]
    calm = answers(tiny(max_num_seqs=5), requests)
    for caching in (False, True):
        backend = tiny().backend
        backend.num_blocks = 16  # of 25 that the five would hold together
        short = Engine(
            tiny().tokenizer, backend, EngineSettings(max_num_seqs=5, prefix_caching=caching, max_model_len=100), 100
        )
        pushed = answers(short, requests)
        assert short.stats().preemptions_total > 0
        assert [item.token_ids for item in pushed] == [item.token_ids for item in calm]
        assert short.stats().kv_blocks_free == 16


def test_an_urgent_request_is_served_before_those_that_wait(tiny: MakeEngine) -> None:
    engine = tiny(max_num_seqs=1)
    long = SamplingParams(max_tokens=30, ignore_eos=True)
    first = engine.add_request(PROMPT, long)
    engine.step()
    second = engine.add_request([9, 9], long)
    urgent = engine.add_request([8, 8], SamplingParams(max_tokens=3, ignore_eos=True), priority=-1)
    done = [output.request_id for output in run_all(engine) if output.finish_reason is not None]
    assert done == [urgent, first, second]


def test_a_request_whose_time_is_up_ends_with_what_it_has(tiny: MakeEngine) -> None:
    engine = tiny(max_num_seqs=1)
    runs = engine.add_request(PROMPT, SamplingParams(max_tokens=150, ignore_eos=True), deadline_s=3600)
    waits = engine.add_request([5], SamplingParams(n=3), deadline_s=3600)
    made = [output for _ in range(3) for output in engine.step()]
    for item in (*engine.scheduler.running, *engine.scheduler.waiting):
        item.deadline_s = 0.0
    ended = list(run_all(engine))
    assert [(output.request_id, output.index, output.finish_reason) for output in ended] == [
        (runs, 0, "deadline"),
        (waits, 0, "deadline"),
        (waits, 1, "deadline"),
        (waits, 2, "deadline"),
    ]
    assert ended[0].completion_tokens == sum(len(output.token_ids) for output in made) == 3
    assert engine.stats().kv_slots_allocated == 0


@pytest.mark.parametrize("budget", [16, 512])
def test_the_prompts_own_tokens_are_scored(tiny: MakeEngine, budget: int) -> None:
    engine = tiny(max_num_batched_tokens=budget)
    answer(engine, PROMPT, max_tokens=1)  # a known prefix must not hide rows
    made = answer(engine, PROMPT, max_tokens=3, prompt_logprobs=2, ignore_eos=True)
    scores = made.outputs[0].prompt_logprobs
    assert scores is not None
    assert scores[0] is None
    assert all(output.prompt_logprobs is None for output in made.outputs[1:])
    exact = torch.log_softmax(tiny().prompt_logits(PROMPT), -1)
    for place in range(1, len(PROMPT)):
        item = scores[place]
        assert item.token_id == PROMPT[place]
        assert item.logprob == pytest.approx(float(exact[place - 1, PROMPT[place]]), abs=1e-4)
        assert len(item.top) == 2


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("budget", [16, 512])
def test_a_text_is_embedded_as_its_hidden_states_say(tiny: MakeEngine, pooling: str, budget: int) -> None:
    engine = tiny(max_num_batched_tokens=budget)
    answer(engine, PROMPT, max_tokens=1)
    engine.add_request(PROMPT, SamplingParams(), pooling=pooling)
    engine.add_request(PROMPT[:9], SamplingParams(max_tokens=2, ignore_eos=True))
    done = [output for output in run_all(engine) if output.embedding is not None]
    assert len(done) == 1
    found = torch.tensor(done[0].embedding)
    hidden = hidden_states(tiny(), PROMPT)
    expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
    assert torch.allclose(found, expected, atol=1e-4)
    assert (done[0].finish_reason, done[0].completion_tokens) == ("stop", 0)
    assert engine.stats().kv_slots_allocated == 0


def hidden_states(engine: Engine, ids: list[int]) -> torch.Tensor:
    """The hidden states of a text, straight from the backend."""
    table = list(range(engine.pool.blocks_for(len(ids))))
    batch = make_batch([Part(token_ids=ids, table=table)], engine.pool.block_size, want_hidden=True)
    hidden = engine.backend.forward(batch).hidden_TK
    assert hidden is not None
    return hidden


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "seed": 4}, {"repetition_penalty": 1.3}], ids=str)
def test_drafts_change_no_answer_and_save_steps_where_text_repeats(smollm2: MakeEngine, sampling: dict) -> None:
    text = "L1 disk full on /var\nL2 disk full on /var\nL3 disk full on /var\nL4 disk full on /var\nL5 disk"
    plain, drafting = smollm2(), smollm2(speculative_tokens=4)
    ids = plain.tokenizer.encode(text)
    before = drafting.stats().steps_total
    expected = answer(plain, ids, max_tokens=40, ignore_eos=True, **sampling)
    found = answer(drafting, ids, max_tokens=40, ignore_eos=True, **sampling)
    assert found.token_ids == expected.token_ids
    assert found.text == expected.text
    stats = drafting.stats()
    if not sampling:
        assert stats.steps_total - before < 25
        assert 0 < stats.spec_accepted_tokens_total <= stats.spec_draft_tokens_total


class Overlapping:
    """A backend that computes ahead, as CUDA does: token ids of the last draws are filled in by the backend."""

    def __init__(self, backend: object) -> None:
        self._backend = backend
        self._ids: torch.Tensor | None = None
        self.filled = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def forward(self, batch: Batch) -> Forward:
        pending = batch.token_ids == FROM_PREVIOUS
        if pending.any():
            assert self._ids is not None
            batch.token_ids[pending] = self._ids[torch.from_numpy(batch.previous_rows[pending]).long()]
            self.filled += int(pending.sum())
        return self._backend.forward(batch)

    def remember(self, ids_R: torch.Tensor) -> None:
        self._ids = ids_R


def overlapping(engine: Engine) -> Engine:
    return Engine(engine.tokenizer, Overlapping(engine.backend), engine.settings, engine.max_model_len)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_computing_ahead_changes_no_answer(tiny: MakeEngine, data: st.DataObject) -> None:
    requests = data.draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(3, 259), min_size=1, max_size=40),
                st.builds(
                    SamplingParams,
                    n=st.sampled_from([1, 1, 3]),
                    max_tokens=st.integers(1, 9),
                    temperature=st.sampled_from([0.0, 1.0]),
                    seed=st.integers(0, 9),
                    stop_token_ids=st.just((7,)),
                    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
                    logprobs=st.sampled_from([None, 1]),
                ),
            ),
            min_size=1,
            max_size=5,
        )
    )
    seats = data.draw(st.integers(1, 4))
    ahead = overlapping(tiny(max_num_seqs=seats, max_num_batched_tokens=24))
    plain = tiny(max_num_seqs=seats, max_num_batched_tokens=24)
    found, expected = [], []
    for engine, sink in ((ahead, found), (plain, expected)):
        ids = [engine.add_request(prompt_ids, params) for prompt_ids, params in requests]
        outputs = list(run_all(engine))
        for id_ in ids:
            for made in by_answer([output for output in outputs if output.request_id == id_]):
                sink.append((made.token_ids, made.text, made.last.finish_reason, len(made.logprobs)))
        engine.pool.check_integrity()
        assert engine.pool.slots().allocated == 0
    assert found == expected


def test_computing_ahead_really_happens(tiny: MakeEngine) -> None:
    engine = overlapping(tiny())
    answer(engine, PROMPT, max_tokens=10, ignore_eos=True)
    assert engine.backend.filled == 9


def test_an_aborted_request_takes_its_step_in_flight_with_it(tiny: MakeEngine) -> None:
    engine = overlapping(tiny())
    first = engine.add_request(PROMPT, SamplingParams(max_tokens=50, ignore_eos=True))
    engine.step()
    engine.step()
    assert engine.abort(first)
    assert [output.request_id for output in run_all(engine)] == []
    assert engine.stats().kv_slots_allocated == 0


def test_ten_thousand_random_requests_leave_nothing_behind(tiny: MakeEngine) -> None:
    small = tiny()
    small.backend.num_blocks = 50
    asked = EngineSettings(max_num_seqs=24, max_num_batched_tokens=200, max_waiting=1000, max_model_len=64)
    engine = Engine(small.tokenizer, small.backend, asked, 64)
    chance = random.Random(7)
    engine.backend.forward = Guess(engine.backend.config.vocab_size)  # bookkeeping alone: a model would take an hour
    open_ids: list[int] = []
    sent = 0
    while sent < 10_000 or engine.has_work:
        while sent < 10_000 and engine.scheduler.num_unfinished < 40:
            size = chance.randint(1, 50)
            same = chance.random() < 0.5  # half of the beginnings are equal
            prompt = [3 + place % 5 for place in range(size)] if same else chance.choices(range(260), k=size)
            params = SamplingParams(
                n=chance.choice([1, 1, 1, 3]), max_tokens=chance.randint(1, 12), stop_token_ids=(chance.randrange(260),)
            )
            deadline_s = 0.002 if chance.random() < 0.02 else None
            open_ids.append(engine.add_request(prompt, params, priority=chance.randint(-1, 1), deadline_s=deadline_s))
            sent += 1
        engine.step()
        if chance.random() < 0.1:
            engine.abort(chance.choice(open_ids[-40:]))
        if chance.random() < 0.02:
            engine.pool.check_integrity()
    engine.pool.check_integrity()
    stats = engine.stats()
    assert (stats.kv_blocks_free, stats.kv_slots_allocated) == (stats.kv_blocks_total, 0)
    assert stats.requests_total == 10_000
    assert stats.preemptions_total > 20
    assert stats.aborted_total > 100


class Guess:
    """Logits out of thin air."""

    def __init__(self, vocab_size: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.vocab_size = vocab_size

    def __call__(self, batch: Batch) -> Forward:
        logits = torch.randn(len(batch.logit_rows), self.vocab_size, generator=self.generator)
        return Forward(logits_RV=logits, greedy_R=logits.argmax(-1))


@pytest.mark.parametrize(
    ("change", "param"),
    [({"logit_bias": {260: 1.0}}, "logit_bias"), ({"stop_token_ids": (260,)}, "stop_token_ids")],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(tiny: MakeEngine, change: dict, param: str) -> None:
    with pytest.raises(RequestError, match="0 to 259") as caught:
        tiny().add_request([5], SamplingParams(**change))
    assert caught.value.param == param


def test_a_prompt_longer_than_the_pool_is_refused_and_the_rest_goes_on(tiny: MakeEngine) -> None:
    engine = tiny(max_model_len=250)
    engine.max_model_len = 48
    running = engine.add_request([5, 6], SamplingParams(max_tokens=5, ignore_eos=True))
    engine.step()
    with pytest.raises(RequestError, match="the context holds 48"):
        engine.add_request(PROMPT, SamplingParams())
    assert {output.request_id for output in run_all(engine)} == {running}


def test_an_unknown_adapter_is_a_404(tiny: MakeEngine) -> None:
    with pytest.raises(RequestError, match="not loaded") as caught:
        tiny().add_request([5], SamplingParams(), adapter="pirate")
    assert caught.value.status == 404


def test_a_uniform_number_depends_on_seed_and_place_alone(tiny: MakeEngine) -> None:
    engine = tiny()
    first = engine.prepare([5, 6], SamplingParams(seed=3), 1)
    second = engine.prepare([9], SamplingParams(seed=3, temperature=1.0), 2)
    assert [first.uniform(ahead) for ahead in range(5)] == [second.uniform(ahead) for ahead in range(5)]
    values = [first.uniform(ahead) for ahead in range(2000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 2000 - 0.5) < 0.03
    assert not math.isclose(values[0], engine.prepare([5, 6], SamplingParams(seed=4), 3).uniform())
