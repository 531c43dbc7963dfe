"""The promise about accepted answers: bounds as the field has them, thresholds that keep it, an alarm without haste."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.promise import NEVER, binomial_cdf, drifted, fit_threshold, lower_bound, most_wrong, upper_bound


def test_the_bounds_are_clopper_and_pearsons() -> None:
    assert upper_bound(0, 10) == pytest.approx(1 - 0.05 ** (1 / 10), abs=1e-6)
    assert upper_bound(5, 100, 0.025) == pytest.approx(0.1128, abs=1e-4)
    assert lower_bound(5, 100, 0.025) == pytest.approx(0.0164, abs=1e-4)
    assert (upper_bound(7, 7), lower_bound(0, 7), upper_bound(0, 0)) == (1.0, 0.0, 1.0)


def test_the_binomial_sums_to_one() -> None:
    assert binomial_cdf(20, 20, 0.3) == pytest.approx(1)
    assert binomial_cdf(0, 3, 0.5) == pytest.approx(0.125)
    assert (binomial_cdf(1, 3, 0.0), binomial_cdf(1, 3, 1.0)) == (1.0, 0.0)


@given(st.integers(1, 400), st.floats(0.01, 0.5))
def test_the_most_wrong_ones_are_the_most_that_the_bound_allows(trials: int, alpha: float) -> None:
    allowed = most_wrong(trials, alpha)
    assert allowed < 0 or upper_bound(allowed, trials) <= alpha + 1e-6
    assert allowed + 1 >= trials or upper_bound(allowed + 1, trials) >= alpha - 1e-6


def test_too_few_incidents_promise_nothing() -> None:
    assert fit_threshold([0.9] * 20, [True] * 20, 0.1) == NEVER
    assert fit_threshold([], [], 0.1) == NEVER
    assert fit_threshold([0.9] * 200, [False] * 200, 0.1) == NEVER


def test_a_model_that_is_always_right_may_always_be_accepted() -> None:
    assert fit_threshold([i / 200 for i in range(200)], [True] * 200, 0.1) == 0.0


def test_equal_confidences_are_accepted_together_or_not_at_all() -> None:
    confidences = [0.9] * 100 + [0.5] * 100
    right = [True] * 100 + [True] * 50 + [False] * 50
    assert fit_threshold(confidences, right, 0.1) == 0.9


def test_the_promise_holds_on_fresh_incidents_about_as_often_as_it_says() -> None:
    draw = random.Random(7)

    def sample(count: int) -> tuple[list[float], list[bool]]:
        confidences = [draw.random() for _ in range(count)]
        return confidences, [draw.random() < 0.4 + 0.6 * value for value in confidences]

    broken = 0
    for _ in range(60):
        threshold = fit_threshold(*sample(300), 0.1)
        confidences, right = sample(3000)
        wrong = sum(c >= threshold and not good for c, good in zip(confidences, right, strict=True))
        broken += wrong / 3000 > 0.1
    assert broken <= 8


def test_drift_is_claimed_only_when_even_the_lower_bound_lies_above_the_promise() -> None:
    assert drifted(10, 40, 0.1)
    assert not drifted(5, 40, 0.1)
    assert not drifted(10, 10, 0.1)
