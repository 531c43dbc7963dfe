"""Intervals that hold what they promise, by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from midwatch.tuning.bootstrap import Interval, ratio


def test_a_ratio_is_the_sum_above_over_the_sum_below() -> None:
    found = ratio([[1.0, 0.0, 3.0]], [[2.0, 4.0, 2.0]])
    assert found is not None
    assert found.value == 0.5
    assert found.low < 0.5 < found.high


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 40))
    assert ratio(scores, seed=1) == ratio(scores, seed=1)
    assert ratio(scores, seed=1) != ratio(scores, seed=2)


def test_nothing_below_is_no_figure() -> None:
    assert ratio([[1.0, 2.0]], [[0.0, 0.0]]) is None
    assert ratio(np.zeros((3, 0))) is None


def test_a_base_that_answers_once_is_compared_with_every_seed() -> None:
    tuned = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=float)
    found = ratio(tuned, [1, 1, 1, 0])
    assert found is not None
    assert found.value == pytest.approx(5 / 6)


def test_a_share_that_never_varies_is_as_wide_as_its_prompts_allow() -> None:
    none, all_ = ratio(np.zeros((3, 100))), ratio(np.ones((3, 100)))
    assert none is not None and all_ is not None
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert (all_.value, all_.high) == (1, 1)
    assert all_.low == pytest.approx(1 - none.high)


def test_all_kept_of_forty_is_a_claim_about_forty_prompts() -> None:
    base = np.array([1.0] * 40 + [0.0] * 60)
    found = ratio(np.tile(base, (3, 1)), base)
    assert found is not None
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 40))


def test_a_change_that_never_varies_has_no_width() -> None:
    found = ratio(np.full((2, 5), 6.0), np.full((2, 5), 3.0))
    assert found is not None
    assert (found.low, found.value, found.high) == (2, 2, 2)


def test_another_unit_scales_all_three() -> None:
    assert Interval(value=0.5, low=0.25, high=0.75).scaled(100) == Interval(value=50, low=25, high=75)


@pytest.mark.parametrize(
    ("seed_spread", "least", "most"),
    [(0.0, 0.93, 1.0), (0.03, 0.90, 1.0)],
    ids=["prompts vary", "prompts and a little the seeds vary"],
)
def test_the_interval_holds_the_truth_about_as_often_as_it_says(seed_spread: float, least: float, most: float) -> None:
    """Hard prompts are hard for every seed; 300 evaluations of 3 seeds and 60 prompts with a known mean."""
    random = np.random.default_rng(7)
    truth, held = 0.8, 0
    for _ in range(300):
        prompts = random.beta(4, 1, size=60)  # mean 0.8
        seeds = random.normal(0, seed_spread, size=3)
        chances = np.clip(prompts[None, :] + seeds[:, None], 0, 1)
        found = ratio((random.random((3, 60)) < chances).astype(float), resamples=400)
        assert found is not None
        held += found.low <= truth <= found.high
    assert least <= held / 300 <= most


def test_drawing_prompts_for_each_seed_alone_would_be_too_narrow() -> None:
    """Three seeds that agree wholly are one sample of prompts, not three."""
    one = (np.random.default_rng(3).random(80) < 0.5).astype(float)
    alone, thrice = ratio(one), ratio(np.tile(one, (3, 1)))
    assert alone is not None and thrice is not None
    assert thrice.high - thrice.low == pytest.approx(alone.high - alone.low, rel=0.1)
