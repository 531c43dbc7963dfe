from __future__ import annotations

import math
import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.engine.request import SamplingParams
from midwatch.engine.sampler import Draw, sample

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)


def draw_many(logits: list[float], count: int, **params: object) -> list[int]:
    rows = torch.tensor([logits])
    source = random.Random(0)
    return [sample(rows.clone(), [Draw(SamplingParams(**params), source)])[0].token_id for _ in range(count)]


@settings(deadline=None)
@given(logits=LOGITS)
def test_temperature_zero_takes_the_likeliest(logits: list[float]) -> None:
    assert draw_many(logits, 1) == [int(torch.tensor(logits).argmax())]


@settings(deadline=None)
@given(
    logits=LOGITS,
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_a_draw_stays_within_top_k_and_top_p(
    logits: list[float], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = sample(torch.tensor([logits]), [Draw(params, random.Random(seed))])[0].token_id
    scaled = torch.tensor(logits, dtype=torch.float64) / temperature
    above = [index for index, value in enumerate(scaled.tolist()) if value > scaled[drawn]]
    if top_k:
        assert len(above) < top_k
    kept = torch.softmax(scaled, -1)
    if top_k:
        kept = kept.sort(descending=True).values[:top_k]
        kept = kept / kept.sum()
    mass = kept.sort(descending=True).values[: len(above)].sum()
    assert mass < top_p + 1e-6


def test_draws_follow_the_distribution() -> None:
    chances = [0.5, 0.3, 0.15, 0.05]
    drawn = draw_many([math.log(chance) for chance in chances], 4000, temperature=1.0)
    for token, chance in enumerate(chances):
        assert abs(drawn.count(token) / 4000 - chance) < 0.03


def test_a_wide_nucleus_looks_past_the_first_thousand() -> None:
    logits = torch.zeros(1, 5000)
    source = random.Random(1)
    params = SamplingParams(temperature=1.0, top_p=0.9)
    drawn = {sample(logits.clone(), [Draw(params, source)])[0].token_id for _ in range(200)}
    assert len(drawn) > 150


@settings(deadline=None)
@given(logits=LOGITS, data=st.data())
def test_a_forbidden_token_is_never_drawn_and_has_no_probability(logits: list[float], data: st.DataObject) -> None:
    flags = st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))
    forbidden = data.draw(flags.filter(lambda drawn: not all(drawn)))
    for temperature in (0.0, 2.0):
        params = SamplingParams(temperature=temperature, logprobs=20)
        drawn = sample(torch.tensor([logits]), [Draw(params, random.Random(3), torch.tensor(forbidden))])[0]
        assert not forbidden[drawn.token_id]
        assert all(not forbidden[token] for token, _ in drawn.top)


@settings(deadline=None)
@given(logits=LOGITS)
def test_log_probabilities_are_of_the_untempered_model_best_first(logits: list[float]) -> None:
    params = SamplingParams(temperature=1.7, logprobs=5)
    drawn = sample(torch.tensor([logits]), [Draw(params, random.Random(3))])[0]
    expected = torch.log_softmax(torch.tensor(logits), -1)
    assert abs(drawn.logprob - expected[drawn.token_id]) < 1e-5
    assert [value for _, value in drawn.top] == sorted((value for _, value in drawn.top), reverse=True)
    assert len(drawn.top) == min(5, len(logits))
    for token, value in drawn.top:
        assert abs(value - expected[token]) < 1e-5


def test_rows_do_not_influence_each_other() -> None:
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=1.0, top_p=0.9)
    together = sample(rows.clone(), [Draw(params, random.Random(seed)) for seed in range(3)])
    alone = [sample(rows[[i]].clone(), [Draw(params, random.Random(i))])[0] for i in range(3)]
    assert together == alone
