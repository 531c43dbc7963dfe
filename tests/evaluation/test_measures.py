from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_kit import verdict

from midwatch.evaluation import measures
from midwatch.evaluation.measures import aurc, auroc, brier, ece, ece_floor, measure, risk_coverage

ANSWERS = st.lists(st.tuples(st.sampled_from((0.1, 0.3, 0.5, 0.7, 0.9)), st.booleans()), min_size=2, max_size=60)


def arrays(*pairs: tuple[float, bool | int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([said for said, _ in pairs], float), np.array([float(good) for _, good in pairs])


def test_auroc_of_a_worked_example() -> None:
    # Right: 0.9, 0.6, 0.6; wrong: 0.6, 0.2. Pairs won: 2 + (0.5 + 1) + (0.5 + 1) = 5 of 6.
    assert auroc(*arrays((0.9, 1), (0.6, 1), (0.6, 1), (0.6, 0), (0.2, 0))) == pytest.approx(5 / 6)


@given(ANSWERS)
def test_auroc_is_the_share_of_pairs_in_order(answers: list[tuple[float, bool]]) -> None:
    good = [said for said, right in answers if right]
    bad = [said for said, right in answers if not right]
    found = auroc(*arrays(*answers))
    if not good or not bad:
        assert found is None
        return
    won = sum((a > b) + 0.5 * (a == b) for a, b in product(good, bad))
    assert found == pytest.approx(won / (len(good) * len(bad)))


def test_ece_of_a_worked_example() -> None:
    # Thirty answers, two a bin: 0.9 with 18 of 20 right is exact; 0.5 with 8 of 10 right is 0.3 off.
    sure = [(0.9, True)] * 18 + [(0.9, False)] * 2
    unsure = [(0.5, True)] * 8 + [(0.5, False)] * 2
    assert ece(*arrays(*sure, *unsure)) == pytest.approx(10 / 30 * 0.3)


def test_ece_sees_a_column_that_is_right_on_average_only() -> None:
    answers = [(0.2, True)] * 14 + [(0.8, False)] * 16
    assert ece(*arrays(*answers)) == pytest.approx(0.8)


@given(ANSWERS, st.randoms())
def test_no_measure_depends_on_the_order_of_the_incidents(answers: list[tuple[float, bool]], random: object) -> None:
    mixed = list(answers)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    for statistic in (ece, brier, auroc, aurc):
        first, second = statistic(*arrays(*answers)), statistic(*arrays(*mixed))
        assert first == second or math.isclose(first, second, abs_tol=1e-9)  # type: ignore[arg-type]


def test_a_perfectly_calibrated_column_shows_about_the_error_of_chance() -> None:
    random = np.random.default_rng(3)
    said = random.random(400)
    seen = [ece(said, (random.random(400) < said).astype(float)) for _ in range(20)]
    assert np.mean(seen) == pytest.approx(ece_floor(said.tolist()), rel=0.15)


def test_brier_of_a_worked_example() -> None:
    assert brier(*arrays((0.8, 1), (0.4, 0))) == pytest.approx((0.04 + 0.16) / 2)


def test_risk_coverage_of_a_worked_example() -> None:
    coverage, risk = risk_coverage(*arrays((0.9, 1), (0.8, 0), (0.7, 1), (0.6, 1)))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert aurc(*arrays((0.9, 1), (0.8, 0), (0.7, 1), (0.6, 1))) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_ties_share_their_risk_whatever_their_order() -> None:
    _, risk = risk_coverage(*arrays((0.5, 0), (0.5, 1)))
    assert risk.tolist() == [0.5, 0.5]


@given(ANSWERS)
@settings(max_examples=50)
def test_knowing_all_is_the_least_area_and_knowing_nothing_the_error_rate(answers: list[tuple[float, bool]]) -> None:
    right = np.array([float(good) for _, good in answers])
    found = aurc(*arrays(*answers))
    assert found is not None
    assert aurc(right, right) <= found + 1e-9  # type: ignore[operator]
    assert aurc(np.full(len(right), 0.5), right) == pytest.approx(1 - right.mean())


def test_category_measures_count_abstentions_as_not_right_but_not_as_wrong() -> None:
    found = measure(
        [
            verdict("right"),
            verdict("wrong", said="dns_resolution", confidence=0.85),
            verdict("other name", said="dns_resolution", true="network_connectivity", also=("dns_resolution",)),
            verdict("silent", said="unknown", confidence=0.1, accepted=True),
            verdict("no cause known", true="", said="dns_resolution"),
        ]
    )
    value = {key: item.interval.value for key, item in found.items() if item.interval is not None}
    assert value["accuracy"] == 2 / 4
    assert value["accuracy_answered"] == pytest.approx(2 / 3)
    assert value["abstained"] == 1 / 4
    assert value["accepted_wrong"] == 1 / 4
    assert value["accepted"] == 3 / 4
    assert value["sure_wrong"] == 1 / 4
    assert value["sure_wrong_count"] == 1
    assert found["ece"].cases == 3


def test_an_unsure_wrong_answer_is_neither_accepted_nor_confidently_wrong() -> None:
    found = measure([verdict(said="dns_resolution", confidence=0.79, accepted=False), verdict()])
    assert found["sure_wrong"].interval.value == 0  # type: ignore[union-attr]
    assert found["accepted_wrong"].interval.value == 0  # type: ignore[union-attr]
    assert found["accuracy_accepted"].interval.value == 1  # type: ignore[union-attr]


def test_the_first_three_do_not_count_an_abstention() -> None:
    truth_third = verdict("third", ranking=("dns_resolution", "unknown", "oom_memory"))
    truth_fourth = verdict("fourth", ranking=("dns_resolution", "unknown", "cpu_saturation", "oom_memory"))
    assert measure([truth_third, truth_fourth])["top3"].interval.value == 0.5  # type: ignore[union-attr]


def test_where_the_lines_show_no_cause_an_abstention_is_right_and_a_named_cause_wrong() -> None:
    found = measure(
        [
            verdict("silent", said="unknown", true="unknown", confidence=0.1, accepted=False),
            verdict("guess", said="oom_memory", true="unknown", ranking=("oom_memory", "unknown"), confidence=0.9),
        ]
    )
    value = {key: item.interval.value for key, item in found.items() if item.interval is not None}
    assert value["accuracy"] == 0.5
    assert value["top3"] == 0.5
    assert value["abstained_right"] == 0.5
    assert value["accepted_wrong"] == 0.5
    assert value["sure_wrong"] == 0.5


def test_false_alarms_have_a_precision_and_a_recall() -> None:
    alarm = measures.FALSE_ALARM
    found = measure(
        [
            verdict("a", said=alarm, true=alarm),
            verdict("b", said=alarm, true="oom_memory"),
            verdict("c", said=alarm, true="disk_storage_full"),
            verdict("d", said="oom_memory", true=alarm),
        ]
    )
    assert found["false_alarm_precision"].interval.value == pytest.approx(1 / 3)  # type: ignore[union-attr]
    assert found["false_alarm_recall"].interval.value == pytest.approx(1 / 2)  # type: ignore[union-attr]


def test_cited_lines_are_judged_incident_by_incident() -> None:
    whole = verdict("whole", cited=(1, 2), cited_right=2, truth_cited=2, truth_shown=2, truth_total=2)
    half = verdict("half", cited=(1, 2, 3, 4), cited_right=2, truth_cited=1, truth_shown=3, truth_total=4)
    none = verdict("none", cited=(), truth_shown=1, truth_total=1)
    unlabelled = verdict("unlabelled", cited=(1,))
    found = measure([whole, half, none, unlabelled])
    value = {key: item.interval.value for key, item in found.items() if item.interval is not None}
    assert value["cited_precision"] == pytest.approx((1 + 0.5) / 2)
    assert value["cited_recall"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert value["cited_f1"] == pytest.approx((1 + 2 * 0.5 * 0.25 / 0.75 + 0) / 3)
    assert value["shown_recall"] == pytest.approx((1 + 0.75 + 1) / 3)
    assert found["cited_f1"].cases == 3


def test_time_and_money_are_of_every_incident() -> None:
    found = measure([verdict(str(index), seconds=float(index), cost_usd=0.001 * index) for index in range(1, 102)])
    assert found["seconds_p50"].interval.value == pytest.approx(51)  # type: ignore[union-attr]
    assert found["seconds_p95"].interval.value == pytest.approx(96)  # type: ignore[union-attr]
    assert found["usd"].interval.value == pytest.approx(0.051)  # type: ignore[union-attr]


def test_a_set_without_labelled_causes_still_has_its_lines() -> None:
    found = measure([verdict(true="", cited=(1,), cited_right=1, truth_cited=1, truth_shown=1, truth_total=1)])
    assert found["accuracy"].interval is None
    assert found["auroc"].interval is None
    assert found["cited_f1"].interval.value == 1  # type: ignore[union-attr]


def test_the_same_verdicts_give_the_same_intervals() -> None:
    some = [verdict(str(i), said="oom_memory" if i % 3 else "dns_resolution", confidence=i / 40) for i in range(40)]
    assert measure(some) == measure(some)
