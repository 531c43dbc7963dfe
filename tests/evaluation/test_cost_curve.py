from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from verdict_kit import verdict

from midwatch.evaluation.cost import ANSWER_TOKENS, Price, curve

PRICE = Price(name="a host", usd_per_mtok_in=2.0, usd_per_mtok_out=10.0, date="2026-11-24")
CALL = (1000 * 2.0 + ANSWER_TOKENS * 10.0) / 1e6


def some(size: int = 400) -> list:
    """Sure answers are right, unsure ones wrong; every fourth is unsure."""
    return [
        verdict(
            str(index),
            said="dns_resolution" if index % 4 == 0 else "oom_memory",
            confidence=0.55 if index % 4 == 0 else 0.95,
            cost_usd=0.0001,
            sent_tokens=1000,
        )
        for index in range(size)
    ]


def test_what_goes_up_is_what_is_unsure_and_the_bill_is_theirs() -> None:
    found = curve(some(), price=PRICE)
    assert found is not None
    point = found.at(0.1)
    assert point.escalated == pytest.approx(0.25, abs=0.02)
    assert point.wrong == 0
    assert point.usd_per_1000 == pytest.approx(1000 * (0.0001 + point.escalated * CALL))
    assert found.always_usd_per_1000 == pytest.approx(1000 * CALL)
    assert point.accuracy is None


def test_more_risk_never_sends_more_up() -> None:
    found = curve(some(), price=PRICE)
    assert found is not None
    shares = [point.escalated for point in found.points]
    assert shares == sorted(shares, reverse=True)
    assert found.points[-1].wrong <= 0.4


def test_with_the_bigger_hosts_answers_the_accuracy_of_the_mix_is_known() -> None:
    local = some()
    bigger = [replace(item, ranking=("oom_memory",), escalated=True, cost_usd=0.02, column="bigger") for item in local]
    found = curve(local, price=PRICE, bigger=bigger)
    assert found is not None
    point = found.at(0.1)
    assert point.accuracy == pytest.approx(1.0)
    assert found.always_usd_per_1000 == pytest.approx(20.0)
    assert point.usd_per_1000 == pytest.approx(1000 * (0.0001 + point.escalated * 0.02))


def test_a_rule_that_accepts_nothing_pays_for_everything_and_the_local_model_too() -> None:
    def never(said: Sequence[float], right: Sequence[bool], alpha: float, delta: float) -> float:
        return 2.0

    found = curve(some(40), price=PRICE, fit=never)
    assert found is not None
    assert {point.escalated for point in found.points} == {1.0}
    assert found.points[0].usd_per_1000 == pytest.approx(found.always_usd_per_1000 + 0.1)


def test_few_incidents_have_no_curve() -> None:
    assert curve(some(3), price=PRICE) is None
