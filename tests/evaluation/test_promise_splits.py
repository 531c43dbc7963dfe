from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from midwatch.evaluation.promise import half, over_splits, threshold


def answers(size: int, seed: int = 1) -> tuple[list[float], list[bool]]:
    """Answers that are right as often as they say."""
    random = np.random.default_rng(seed)
    said = random.random(size)
    return said.tolist(), (random.random(size) < said).tolist()


def test_the_shipped_rule_keeps_its_promise_on_halves_that_chose_nothing() -> None:
    said, right = answers(600)
    found = over_splits(said, right, alpha=0.1)
    assert found is not None
    assert found.mean_wrong <= 0.1
    assert found.share_kept >= 0.9  # the other half's own chance comes on top of the 5 % that the bound allows
    assert found.mean_accepted > 0.3


def test_a_rule_that_accepts_everything_breaks_it() -> None:
    said, right = answers(600)

    def all_of_them(said: Sequence[float], right: Sequence[bool], alpha: float, delta: float) -> float:
        return 0.0

    found = over_splits(said, right, alpha=0.1, fit=all_of_them)
    assert found is not None
    assert found.kept == 0
    assert found.mean_accepted == 1
    assert found.mean_wrong == pytest.approx(1 - float(np.mean(right)), abs=0.01)
    assert found.worst_wrong > found.mean_wrong


def test_the_half_that_is_judged_never_chose() -> None:
    said, right = answers(40)
    chose: list[set[float]] = []

    def remember(said: Sequence[float], right: Sequence[bool], alpha: float, delta: float) -> float:
        chose.append(set(said))
        return 2.0

    over_splits(said, right, fit=remember, splits=5)
    assert len(chose) == 5
    assert all(len(some) == 20 for some in chose)
    assert len({frozenset(some) for some in chose}) == 5


def test_groups_are_never_torn_apart() -> None:
    groups = [f"fault {index % 7}" for index in range(70)]
    for seed in range(20):
        chosen = half(np.random.default_rng(seed), 70, groups)
        assert all(len({bool(chosen[i]) for i in range(70) if groups[i] == name}) == 1 for name in set(groups))
        assert 30 <= chosen.sum() <= 45


def test_a_single_group_is_split_by_incident() -> None:
    assert half(np.random.default_rng(0), 10, ["one"] * 10).sum() == 5


def test_an_answer_as_likely_wrong_as_right_is_never_accepted() -> None:
    assert threshold([0.2] * 200, [True] * 200, 0.4) == 0.5


def test_one_incident_tells_nothing() -> None:
    assert over_splits([0.9], [True]) is None
