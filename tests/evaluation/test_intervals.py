from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.evaluation.intervals import clopper_pearson, redrawn
from midwatch.evaluation.measures import auroc, ece


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [  # tables of exact limits: 0 of n has 1 - 0.025^(1/n); the others from beta quantiles
        (0, 10, 0.0, 0.30850),
        (10, 10, 0.69150, 1.0),
        (1, 10, 0.00253, 0.44502),
        (5, 10, 0.18709, 0.81291),
        (3, 50, 0.01255, 0.16548),
    ],
)
def test_exact_limits_are_those_of_the_tables(hits: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(hits, trials) == pytest.approx((low, high), abs=2e-5)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_exact_limits_hold_the_share_and_mirror(pair: tuple[int, int]) -> None:
    hits, trials = pair
    low, high = clopper_pearson(hits, trials)
    assert 0 <= low <= hits / trials <= high <= 1
    assert clopper_pearson(trials - hits, trials) == pytest.approx((1 - high, 1 - low), abs=1e-6)


@pytest.mark.parametrize(("hits", "trials"), [(1, 7), (12, 80), (81, 263)])
def test_at_each_limit_what_was_seen_has_a_chance_of_one_in_forty(hits: int, trials: int) -> None:
    low, high = clopper_pearson(hits, trials)

    def chance(counts: range, share: float) -> float:
        return sum(comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in counts)

    assert chance(range(hits, trials + 1), low) == pytest.approx(0.025, rel=1e-4)
    assert chance(range(hits + 1), high) == pytest.approx(0.025, rel=1e-4)


def test_a_redrawn_mean_has_the_width_that_theory_says() -> None:
    values = np.random.default_rng(1).normal(5, 1, 400).tolist()
    found = redrawn(lambda drawn: float(drawn.mean()), values)
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_whole_groups_that_agree_are_less_sure_than_their_members() -> None:
    values = [float(index // 10 % 2) for index in range(200)]
    groups = [str(index // 10) for index in range(200)]
    alone = redrawn(lambda drawn: float(drawn.mean()), values)
    together = redrawn(lambda drawn: float(drawn.mean()), values, groups=groups)
    assert alone is not None and together is not None
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_an_area_without_two_classes_is_not_defined() -> None:
    assert redrawn(auroc, [0.1, 0.9], [1.0, 1.0]) is None


def test_the_interval_of_a_calibration_error_is_not_moved_up_by_redrawing() -> None:
    random = np.random.default_rng(5)
    said = random.random(300)
    right = (random.random(300) < said).astype(float)
    found = redrawn(ece, said.tolist(), right.tolist())
    assert found is not None
    assert found.low < found.value - 0.005
    assert found.value < found.high
