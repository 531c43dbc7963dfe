from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from midwatch.engine.adjustments import adjust, apply_masks
from midwatch.engine.drawing import draw_rows
from midwatch.engine.request import SamplingParams
from midwatch.engine.sampler import NOTHING, Draw, Drawn, sample, score

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=700)
UNIFORMS = st.floats(0, 1, exclude_max=True)
MARGIN = 1e-4
"""float32 against float64: a draw this close to a boundary of the distribution may fall on either side."""


def bits(allowed: list[bool]) -> np.ndarray:
    packed = np.packbits(np.array(allowed), bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view(np.int32)


def one(logits: list[float], **draw: object) -> Drawn:
    return sample(torch.tensor([logits]), [Draw(**draw)]).drawn()[0]


@dataclass
class Reference:
    """Every step by its definition, in float64, over plain lists."""

    logits: list[float]
    params: SamplingParams
    prompt_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    end_ids: frozenset[int] = frozenset()
    allowed: list[bool] | None = None

    def adjusted(self) -> list[float]:
        params, adjusted = self.params, list(self.logits)
        for token, value in enumerate(self.logits):
            x = value
            if self.allowed is not None and not self.allowed[token]:
                x = -math.inf
            if len(self.answer_ids) < params.min_tokens and token in (*self.end_ids, *params.stop_token_ids):
                x = -math.inf
            x += params.logit_bias.get(token, 0.0)
            if token in self.prompt_ids or token in self.answer_ids:
                x = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
            count = self.answer_ids.count(token)
            x -= params.presence_penalty * (count > 0) + params.frequency_penalty * count
            adjusted[token] = x
        return adjusted

    def weights(self) -> list[float]:
        """After temperature and filters; 0 is filtered out."""
        params, adjusted = self.params, self.adjusted()
        greatest = max(adjusted)
        weights = [math.exp((x - greatest) / params.temperature) for x in adjusted]
        if 0 < params.top_k < len(weights):
            kth = sorted(weights, reverse=True)[params.top_k - 1]
            weights = [w if w >= kth else 0.0 for w in weights]
        weights = [w if w >= params.min_p * max(weights) else 0.0 for w in weights]
        if params.top_p < 1:
            total = sum(weights)
            above = [sum(other for other in weights if other > w) for w in weights]
            weights = [w if a < params.top_p * total else 0.0 for w, a in zip(weights, above, strict=True)]
        return weights

    def boundaries(self) -> list[float]:
        """Where the cumulative distribution ends for each id."""
        weights = np.array(self.weights())
        return list(np.cumsum(weights) / weights.sum())

    def is_clear(self) -> bool:
        """False if a filter's edge lies so close to a weight that float32 may see it on the other side."""
        p = self.params
        for change in (1 - MARGIN, 1 + MARGIN):
            fields = {name: getattr(p, name) for name in SamplingParams.__dataclass_fields__}
            fields |= {"min_p": min(1.0, p.min_p * change), "top_p": min(1.0, p.top_p * change) if p.top_p < 1 else 1.0}
            other = Reference(
                self.logits,
                SamplingParams(**fields),
                self.prompt_ids,
                self.answer_ids,
                self.end_ids,
                self.allowed,
            )
            if [w > 0 for w in other.weights()] != [w > 0 for w in self.weights()]:
                return False
        kept = sorted(w for w in self.weights() if w > 0)
        edge = sorted(math.exp((x - max(self.adjusted())) / p.temperature) for x in self.adjusted())
        return not any(0 < abs(w - kept[0]) < kept[0] * MARGIN for w in edge)


@st.composite
def requests(draw: st.DrawFn) -> Reference:
    logits = draw(st.lists(st.integers(-400, 400).map(lambda n: n / 16), min_size=2, max_size=40))
    ids = st.integers(0, len(logits) - 1)
    params = SamplingParams(
        temperature=draw(st.floats(0.3, 3)),
        top_k=draw(st.integers(0, 12)),
        top_p=draw(st.one_of(st.just(1.0), st.floats(0.05, 0.999))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0.001, 0.5))),
        min_tokens=draw(st.integers(0, 4)),
        presence_penalty=draw(st.floats(-2, 2)),
        frequency_penalty=draw(st.floats(-2, 2)),
        repetition_penalty=draw(st.one_of(st.just(1.0), st.floats(0.5, 2))),
        logit_bias=draw(st.dictionaries(ids, st.floats(-100, 100), max_size=5)),
        stop_token_ids=tuple(draw(st.lists(ids, max_size=1))),
    )
    allowed = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))))
    return Reference(
        logits,
        params,
        draw(st.lists(ids, max_size=6)),
        draw(st.lists(ids, max_size=6)),
        frozenset(draw(st.lists(ids, max_size=1))),
        allowed,
    )


@settings(deadline=None, max_examples=300)
@given(reference=requests(), uniform=UNIFORMS, together=st.booleans())
def test_every_parameter_does_what_its_definition_says(reference: Reference, uniform: float, together: bool) -> None:
    draw = Draw(
        params=reference.params,
        uniform=uniform,
        prompt_ids=reference.prompt_ids,
        answer_ids=reference.answer_ids,
        end_ids=reference.end_ids,
        allowed=None if reference.allowed is None else bits(reference.allowed),
    )
    if all(x == -math.inf for x in reference.adjusted()):
        assert sample(torch.tensor([reference.logits]), [draw]).drawn() == [Drawn(NOTHING)]
        return
    assume(reference.is_clear())
    if together:  # the way of a GPU: rows at once
        rows = torch.tensor([reference.adjusted()], dtype=torch.float32)
        drawn = int(draw_rows(rows, [draw])[0])
    else:
        drawn = sample(torch.tensor([reference.logits]), [draw]).drawn()[0].token_id
    assert reference.weights()[drawn] > 0
    ends = reference.boundaries()
    starts = [0.0, *ends[:-1]]
    assert starts[drawn] - MARGIN <= uniform <= ends[drawn] + MARGIN


@settings(deadline=None, max_examples=300)
@given(reference=requests())
def test_masks_biases_and_penalties_change_logits_by_their_formulas(reference: Reference) -> None:
    draw = Draw(
        params=reference.params,
        prompt_ids=reference.prompt_ids,
        answer_ids=reference.answer_ids,
        end_ids=reference.end_ids,
        allowed=None if reference.allowed is None else bits(reference.allowed),
    )
    rows = torch.tensor([[0.0] * len(reference.logits), reference.logits])
    plain = Draw(params=SamplingParams(temperature=1.0))
    apply_masks(rows, [None, draw.allowed])
    adjust(rows, [plain, draw])
    assert rows[0].tolist() == [0.0] * len(reference.logits)
    for got, expected in zip(rows[1].tolist(), reference.adjusted(), strict=True):
        assert got == expected or abs(got - expected) < 1e-4 * max(1, abs(expected))


@pytest.mark.parametrize("vocab_size", [300, 1300])
def test_rows_of_a_gpu_are_filtered_each_by_its_own_parameters(vocab_size: int) -> None:
    source = random.Random(3)
    kinds = [
        {},
        {"top_k": 2},
        {"top_k": 1200},
        {"top_p": 0.3},
        {"min_p": 0.2},
        {"top_k": 9, "top_p": 0.8},
        {"top_k": 1},
    ]
    rows = torch.randn(140, vocab_size, generator=torch.Generator().manual_seed(4))
    params = [SamplingParams(temperature=1.0 if row % 5 else 0.0, **kinds[row % 7]) for row in range(140)]
    draws = [Draw(params=item, uniform=source.random()) for item in params]
    assert draw_rows(rows.clone(), draws).tolist() == sample(rows, draws).ids_R.tolist()


@settings(deadline=None)
@given(logits=LOGITS)
def test_temperature_zero_takes_the_likeliest_and_the_lowest_of_equals(logits: list[float]) -> None:
    assert one(logits, params=SamplingParams()).token_id == logits.index(max(logits))


@settings(deadline=None)
@given(logits=LOGITS, uniform=UNIFORMS)
def test_a_tiny_temperature_is_greedy(logits: list[float], uniform: float) -> None:
    drawn = one(logits, params=SamplingParams(temperature=1e-300), uniform=uniform).token_id
    assert logits[drawn] >= max(logits) - 1e-3


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_draws_follow_the_distribution(params: dict[str, float], together: bool) -> None:
    logits = torch.randn(600, generator=torch.Generator().manual_seed(7)) * 2
    weights = np.array(Reference(logits.tolist(), SamplingParams(**params)).weights())
    expected = weights / weights.sum()
    source, count = random.Random(11), 4000
    draws = [Draw(params=SamplingParams(**params), uniform=source.random()) for _ in range(count)]
    rows = logits.repeat(count, 1)
    ids = draw_rows(rows, draws) if together else sample(rows, draws).ids_R
    seen = np.bincount(ids.numpy(), minlength=600)
    assert seen[expected == 0].sum() == 0
    common = expected * count >= 5
    cells = [*zip(seen[common], expected[common] * count, strict=True)]
    cells.append((seen[~common].sum(), max(expected[~common].sum() * count, 1e-9)))
    chi_square = sum((got - want) ** 2 / want for got, want in cells if want > 1e-6)
    degrees = max(len(cells) - 1, 1)
    assert chi_square < degrees + 4.5 * math.sqrt(2 * degrees)  # beyond one in ten thousand


def test_a_wide_nucleus_holds_thousands_of_tokens() -> None:
    source = random.Random(1)
    params = SamplingParams(temperature=1.0, top_p=0.9)
    draws = [Draw(params=params, uniform=source.random()) for _ in range(200)]
    assert len(set(sample(torch.zeros(200, 5000), draws).ids_R.tolist())) > 150


@pytest.mark.parametrize("vocab_size", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_distribution_are_tokens_too(vocab_size: int, uniform: float) -> None:
    logits = torch.full((1, vocab_size), -math.inf)
    logits[0, vocab_size // 2] = 0.0
    for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_p=0.5, top_k=7, min_p=0.1)):
        draw = Draw(params=params, uniform=uniform)
        assert sample(logits.clone(), [draw]).drawn()[0].token_id == vocab_size // 2
        assert int(draw_rows(logits.clone(), [draw])[0]) == vocab_size // 2


@settings(deadline=None)
@given(logits=LOGITS, data=st.data())
def test_a_barred_token_is_never_drawn_and_has_no_probability(logits: list[float], data: st.DataObject) -> None:
    flags = st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))
    allowed = data.draw(flags.filter(any))
    for temperature in (0.0, 2.0):
        params = SamplingParams(temperature=temperature, logprobs=20)
        drawn = one(logits, params=params, uniform=0.4, allowed=bits(allowed))
        assert allowed[drawn.token_id]
        assert all(allowed[token] for token, _ in drawn.top)
        assert len(drawn.top) == min(20, sum(allowed))


@pytest.mark.parametrize("count", [1, 7, 512, 513, 1500, 2999])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logprobs", [None, 3])
def test_a_mask_does_the_same_however_many_tokens_it_leaves(
    count: int, seed: int, temperature: float, logprobs: int | None
) -> None:
    source = random.Random(seed)
    logits = [source.gauss(0, 3) for _ in range(3000)]
    allowed = [False] * 3000
    for token in source.sample(range(3000), count):
        allowed[token] = True
    likeliest = int(np.argmax(logits))
    if 1 < count < 2999:
        allowed[likeliest] = seed == 0
    params = SamplingParams(temperature=temperature, logprobs=logprobs, logit_bias={5: 2.0}, presence_penalty=1.0)
    reference = Reference(logits, SamplingParams(temperature=1.0), allowed=allowed)
    adjusted = Reference(logits, replace(params, temperature=1.0), [], [9], allowed=allowed)
    for uniform in (0.0, 0.3, 0.77):
        drawn = one(logits, params=params, uniform=uniform, answer_ids=[9], allowed=bits(allowed))
        if temperature == 0:
            assert drawn.token_id == int(np.argmax(adjusted.adjusted()))
        else:
            ends = adjusted.boundaries()
            start = ends[drawn.token_id - 1] if drawn.token_id else 0.0
            assert start - MARGIN <= uniform <= ends[drawn.token_id] + MARGIN
        if logprobs is not None:
            masked = torch.log_softmax(torch.tensor(reference.adjusted()), -1)
            assert abs(drawn.logprob - masked[drawn.token_id]) < 1e-4
            assert [token for token, _ in drawn.top] == masked.topk(min(3, sum(allowed))).indices.tolist()


def test_ids_past_the_end_of_a_mask_are_barred() -> None:
    drawn = one([0.0] * 32 + [9.0] * 8, params=SamplingParams(), allowed=np.array([4], np.int32))
    assert drawn.token_id == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_number_to_draw_from_says_so_and_spoils_no_other(value: float, temperature: float) -> None:
    rows = torch.zeros(3, 50)
    rows[:, 7] = 30.0
    rows[1] = -math.inf
    rows[1, 3] = value
    draws = [Draw(params=SamplingParams(temperature=temperature, logprobs=1), uniform=0.5)] * 3
    sampled = sample(rows.clone(), draws)
    assert [drawn.token_id for drawn in sampled.drawn()] == [7, NOTHING, 7]
    assert sampled.ids_R.tolist() == [7, 0, 7]  # a safe index for the next step
    assert draw_rows(rows, draws).tolist() == [7, NOTHING, 7]


@settings(deadline=None)
@given(logits=LOGITS)
def test_log_probabilities_are_of_the_untempered_model_best_first(logits: list[float]) -> None:
    params = SamplingParams(temperature=1.7, logprobs=5, logit_bias={0: 100.0}, top_k=1)
    drawn = one(logits, params=params, uniform=0.3, answer_ids=[0])
    expected = torch.log_softmax(torch.tensor(logits), -1)
    assert drawn.logprob is not None
    assert abs(drawn.logprob - expected[drawn.token_id]) < 1e-5
    assert [value for _, value in drawn.top] == sorted((value for _, value in drawn.top), reverse=True)
    assert len(drawn.top) == min(5, len(logits))
    for token, value in drawn.top:
        assert abs(value - expected[token]) < 1e-5


def test_each_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    draws = [Draw(params=SamplingParams(logprobs=count)) for count in (None, 0, 2, 5)]
    drawn = sample(torch.arange(40.0).repeat(4, 1), draws).drawn()
    assert drawn[0].logprob is None
    assert [len(item.top) for item in drawn] == [0, 0, 2, 5]
    assert all(item.logprob is not None for item in drawn[1:])


MIXED = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 30},
    {"temperature": 1.0, "min_p": 0.02, "logprobs": 3},
    {"temperature": 1.2, "presence_penalty": 1.0, "repetition_penalty": 1.3},
    {"temperature": 0.0, "logit_bias": {5: 3.0}, "logprobs": 0},
]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_gives_the_same_answer_to_the_bit_alone_and_among_others(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        vocab_size, count = 40_961, 28
        rows = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(1)) * 3
        source = random.Random(5)
        draws = [
            Draw(params=SamplingParams(**MIXED[row % len(MIXED)]), uniform=source.random(), answer_ids=[1, 2, 2])
            for row in range(count)
        ]
        together = sample(rows.clone(), draws).drawn()
        for row in reversed(range(count)):
            assert sample(rows[[row]].clone(), [draws[row]]).drawn() == [together[row]]
        half = count // 2
        assert sample(rows[half:].clone(), draws[half:]).drawn() == together[half:]
    finally:
        torch.set_num_threads(before)


def test_plain_greedy_rows_take_the_ids_that_the_backend_has() -> None:
    rows = torch.zeros(2, 10)
    given_ids = torch.tensor([3, 4], dtype=torch.int32)
    sampled = sample(rows, [Draw(params=SamplingParams())] * 2, given_ids)
    assert sampled.ids_R.dtype == torch.int64
    assert [drawn.token_id for drawn in sampled.drawn()] == [3, 4]
    asked = [Draw(params=SamplingParams()), Draw(params=SamplingParams(logit_bias={8: 1.0}))]
    assert [drawn.token_id for drawn in sample(rows, asked, given_ids).drawn()] == [3, 8]


def test_given_tokens_are_scored_row_by_row() -> None:
    rows = torch.randn(300, 50, generator=torch.Generator().manual_seed(2))
    ids = [row % 50 for row in range(300)]
    found = score(rows, ids, 3)
    expected = torch.log_softmax(rows, -1)
    assert [item.token_id for item in found] == ids
    for row, item in enumerate(found):
        assert item.logprob is not None
        assert abs(item.logprob - float(expected[row, ids[row]])) < 1e-5
        assert [token for token, _ in item.top] == expected[row].topk(3).indices.tolist()
    assert score(rows[:1], [4], 0)[0].top == ()


def test_ids_outside_the_vocabulary_are_passed_over() -> None:
    params = SamplingParams(logit_bias={4: 2.0, 999: 50.0}, frequency_penalty=1.0)
    assert one([0.0] * 8, params=params, answer_ids=[77, 3]).token_id == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_a_cpu_draws() -> None:
    vocab_size, count = 128_256, 300
    rows = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(1)) * 3
    source = random.Random(5)
    mask = np.full(vocab_size // 32, -1, np.int32)
    mask[::3] = 0x0F0F0F0F
    draws = [
        Draw(
            params=SamplingParams(**MIXED[row % len(MIXED)]),
            uniform=source.random(),
            answer_ids=[1, 2, 2],
            allowed=mask if row % 2 else None,
        )
        for row in range(count)
    ]
    on_gpu = sample(rows.cuda(), draws).drawn()
    on_cpu = sample(rows.clone(), draws).drawn()
    same = sum(a.token_id == b.token_id for a, b in zip(on_gpu, on_cpu, strict=True))
    assert same >= count - 3  # a draw within a rounding of a boundary may fall on either side
    for a, b in zip(on_gpu, on_cpu, strict=True):
        if a.token_id == b.token_id and a.logprob is not None and b.logprob is not None:
            assert abs(a.logprob - b.logprob) < 1e-4
