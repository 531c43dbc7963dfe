"""A model's opinion is read from the probabilities of the tokens in which it names a category."""

from __future__ import annotations

from math import exp, log

import pytest

from midwatch.copilot import opinion
from midwatch.copilot.taxonomy import IDS
from midwatch.gateway.wire import TokenLogprob


def forced(text: str) -> TokenLogprob:
    return TokenLogprob(token=text, logprob=0.0)


def drawn(text: str, **shares: float) -> TokenLogprob:
    top = tuple((name, log(share)) for name, share in shares.items())
    return TokenLogprob(token=text, logprob=log(shares[text]), top=top)


def answered(*category: TokenLogprob) -> list[TokenLogprob]:
    return [
        *map(forced, ('{"cita', 'tions": ["L1"],', ' "', "category", '": "')),
        *category,
        *map(forced, ('",', ' "severity": "high", "entity": "')),
        drawn("api", api=0.6, db=0.4),
        forced('"}'),
    ]


def test_the_first_token_tells_categories_apart() -> None:
    shares = opinion.category_shares(answered(drawn("oom", oom=0.7, disk=0.2, dns=0.1), forced("_memory")))
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["oom_memory"] == pytest.approx(0.7, abs=0.01)
    assert shares["disk_storage_full"] == pytest.approx(0.2, abs=0.01)
    assert shares["queue_backlog"] < 0.001


def test_categories_that_begin_alike_share_until_a_later_token_parts_them() -> None:
    tokens = answered(
        drawn("ci", ci=0.8, oom=0.2), forced("_"), drawn("test", test=0.75, build=0.25), forced("_failure")
    )
    shares = opinion.category_shares(tokens)
    assert shares is not None
    assert shares["ci_test_failure"] == pytest.approx(0.6, abs=0.01)
    assert shares["ci_build_dependency"] == pytest.approx(0.2, abs=0.01)
    unparted = opinion.category_shares(answered(drawn("oom", oom=0.6, ci=0.4), forced("_memory")))
    assert unparted is not None
    assert unparted["ci_test_failure"] == pytest.approx(0.2, abs=0.01) == unparted["ci_build_dependency"]


def test_a_token_may_begin_before_the_value() -> None:
    start = TokenLogprob(token=' "oom', logprob=log(0.9), top=((' "oom', log(0.9)), (' "dns', log(0.1))))
    shares = opinion.category_shares([forced('{"category":'), start, forced('_memory"}')])
    assert shares is not None
    assert shares["dns_resolution"] == pytest.approx(0.1, abs=0.01)


def test_answers_without_probabilities_are_no_opinion() -> None:
    assert opinion.category_shares([forced('{"category": "oom_memory"}')]) is None
    assert opinion.category_shares([]) is None
    assert opinion.read([[]]) is None


def test_several_answers_average_and_say_how_far_they_part() -> None:
    first = answered(drawn("oom", oom=0.9, dns=0.1), forced("_memory"))
    other = answered(drawn("dns", oom=0.3, dns=0.7), forced("_resolution"))
    found = opinion.read([first, first, other])
    assert found is not None
    assert found.best == "oom_memory"
    assert found.shares["oom_memory"] == pytest.approx(0.7, abs=0.01)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.spread == pytest.approx(0.4, abs=0.01)
    assert found.entity_margin == pytest.approx(0.2, abs=0.01)
    assert exp(found.mean_logprob) == pytest.approx((0.9 * 0.6) ** 0.5, abs=0.01)


def test_what_is_said_without_probabilities_leaves_a_little_for_the_rest() -> None:
    found = opinion.said("oom_memory")
    assert found.best == "oom_memory"
    assert sum(found.shares.values()) == pytest.approx(1)
    assert min(found.shares.values()) > 0
    assert set(found.shares) == set(IDS)
