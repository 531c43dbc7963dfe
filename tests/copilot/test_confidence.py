"""Confidence weighs what the rules and a model say; a fit makes it a probability, and nobody is taken at their word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot import opinion
from midwatch.copilot.confidence import (
    CHOICE,
    LEAST_ACCEPTED,
    MAX_CONFIDENCE,
    SIGNALS,
    Calibration,
    action_of,
    choice_features,
    choose,
    judge,
    known_words,
    word_hash,
)
from midwatch.copilot.model import Evidence, EvidenceLine, Ranked
from midwatch.copilot.taxonomy import IDS


def evidence(*pairs: tuple[str, float]) -> Evidence:
    line = EvidenceLine(id="L1", line_number=1, text="no such host", shown="no such host", template="no such host")
    ranking = tuple(Ranked(category=name, score=score, line_ids=("L1",)) for name, score in pairs)
    return Evidence(
        lines=(line,), ranking=ranking, entities=(), total_lines=1, total_templates=1, tokens=5, mining_ms=0.0
    )


def fitted(**weights: float) -> Calibration:
    return Calibration(
        column="local",
        model="m",
        choice=(1.0, 3.0, 0.5, -1.0),
        signals=tuple(weights.get(name, 0.0) for name in SIGNALS),
        scores=tuple((0.5 + index / 1000, 1) for index in range(400)),
        fitted_on="a test",
        date="2026-01-01",
        words=frozenset({word_hash("such"), word_hash("host")}),
    )


def test_two_voices_that_agree_are_surer_than_one_and_two_that_differ_are_not_sure() -> None:
    dns = evidence(("dns_resolution", 0.7), ("network_connectivity", 0.2))
    alone = judge(dns, None, ["L1"], None)
    agreed = judge(dns, opinion.said("dns_resolution"), ["L1"], None)
    disputed = judge(dns, opinion.said("queue_backlog"), ["L1"], None)
    assert agreed.category == alone.category == "dns_resolution"
    assert agreed.confidence > alone.confidence > disputed.confidence


def test_silence_of_both_voices_abstains_and_an_abstention_is_never_accepted() -> None:
    nothing = judge(evidence(), opinion.said("unknown"), [], None)
    assert nothing.category == "unknown"
    assert nothing.confidence < LEAST_ACCEPTED


def test_a_fit_turns_signals_into_a_probability() -> None:
    dns = evidence(("dns_resolution", 0.7))
    sure = judge(dns, opinion.said("dns_resolution"), ["L1"], fitted(bias=2.0))
    unsure = judge(dns, opinion.said("dns_resolution"), ["L1"], fitted(bias=-2.0))
    assert sure.calibrated
    assert sure.confidence == pytest.approx(0.8808, abs=1e-4)
    assert unsure.confidence == pytest.approx(0.1192, abs=1e-4)


def test_words_that_were_never_seen_lower_what_is_known() -> None:
    assert known_words(evidence(), fitted().words) == 1.0
    line = EvidenceLine(id="L1", line_number=1, text="", shown="zorblax of such host", template="")
    strange = Evidence(
        lines=(line,), ranking=(), entities=(), total_lines=1, total_templates=1, tokens=5, mining_ms=0.0
    )
    assert known_words(strange, fitted().words) == pytest.approx(2 / 3)


@given(
    st.lists(st.floats(min_value=0, max_value=1), min_size=0, max_size=5),
    st.one_of(st.none(), st.sampled_from(IDS)),
    st.sampled_from([None, fitted(bias=30.0), fitted(bias=-30.0, choice_logit=1.0)]),
)
def test_it_stays_between_zero_and_its_ceiling(
    scores: list[float], told: str | None, calibration: Calibration | None
) -> None:
    pairs = zip(IDS, sorted(scores, reverse=True), strict=False)
    heard = None if told is None else opinion.said(told)
    judged = judge(evidence(*pairs), heard, ["L1", "L9"], calibration)
    assert 0 <= judged.confidence <= MAX_CONFIDENCE
    assert sum(share for _, share in judged.ranking) == pytest.approx(1)
    assert set(judged.signals) == set(SIGNALS)


def test_the_choice_is_a_softmax_of_its_features() -> None:
    features = choice_features([Ranked(category="oom_memory", score=1.0, line_ids=())], None)
    ranking = dict(choose(features, [0.0, 1.0] + [0.0] * (len(CHOICE) - 2)))
    assert ranking["oom_memory"] / ranking["dns_resolution"] == pytest.approx(2.718281828)


def test_the_threshold_is_never_below_one_half() -> None:
    assert fitted().threshold(0.1) == LEAST_ACCEPTED


def test_the_action_follows_the_threshold_and_who_there_is_to_ask() -> None:
    assert action_of(0.5, 0.5, can_escalate=True) == "accept"
    assert action_of(0.49, 0.5, can_escalate=True) == "escalate"
    assert action_of(0.49, 0.5, can_escalate=False) == "ask_person"
