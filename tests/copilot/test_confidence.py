"""Confidence rises with what can be checked and falls with what contradicts; it never takes a model's word."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.confidence import MAX_CONFIDENCE, MAX_UNKNOWN, action_of, confidence_of, token_margin_of
from midwatch.copilot.model import Ranked
from midwatch.gateway.wire import TokenLogprob


def ranked(*pairs: tuple[str, float]) -> list[Ranked]:
    return [Ranked(category=name, score=score, line_ids=("L1", "L2")) for name, score in pairs]


def test_a_plain_statement_is_surer_than_a_hint_and_a_contest_is_not_sure() -> None:
    plain = confidence_of("oom_memory", ranked(("oom_memory", 0.69)), ["L1", "L2"])
    hint = confidence_of("oom_memory", ranked(("oom_memory", 0.45)), ["L1", "L2"])
    contest = confidence_of("oom_memory", ranked(("oom_memory", 0.43), ("dns_resolution", 0.38)), ["L1", "L2"])
    assert plain > 0.8 > 0.5 > hint > contest


def test_citing_the_lines_behind_it_adds_and_disagreement_takes_away() -> None:
    ranking = ranked(("oom_memory", 0.5), ("dns_resolution", 0.45))
    assert confidence_of("oom_memory", ranking, ["L1", "L2"]) > confidence_of("oom_memory", ranking, ["L9"])
    agrees = confidence_of("oom_memory", ranking, ["L1"], choices=2, token_margin=0.9)
    differs = confidence_of("dns_resolution", ranking, ["L1"], choices=2, token_margin=0.9)
    assert agrees > differs + 0.2


def test_unknown_is_never_confident() -> None:
    assert confidence_of("unknown", [], []) <= MAX_UNKNOWN
    assert confidence_of("unknown", ranked(("oom_memory", 0.7)), ["L1"]) <= MAX_UNKNOWN


def test_a_free_host_is_believed_more_where_the_rules_agree() -> None:
    ranking = ranked(("oom_memory", 0.6), ("dns_resolution", 0.1))
    assert (
        confidence_of("oom_memory", ranking, ["L1"], free=True)
        > confidence_of("code_defect_crash", ranking, [], free=True)
        > 0.5
    )


@given(
    st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=5),
    st.integers(min_value=1, max_value=4),
    st.one_of(st.none(), st.floats(min_value=0, max_value=1)),
    st.booleans(),
)
def test_it_stays_between_zero_and_its_ceiling(
    scores: list[float], choices: int, margin: float | None, free: bool
) -> None:
    ranking = [
        Ranked(category=f"c{i}", score=score, line_ids=("L1",)) for i, score in enumerate(sorted(scores, reverse=True))
    ]
    value = confidence_of("c0", ranking, ["L1"], choices=choices, token_margin=margin, free=free)
    assert 0 <= value <= MAX_CONFIDENCE


def test_the_action_follows_the_threshold_and_who_there_is_to_ask() -> None:
    assert action_of(0.5, 0.5, can_escalate=True) == "accept"
    assert action_of(0.49, 0.5, can_escalate=True) == "escalate"
    assert action_of(0.49, 0.5, can_escalate=False) == "ask_person"


def test_the_token_margin_is_the_least_gap_over_the_categorys_tokens() -> None:
    def token(text: str, first: float, second: float) -> TokenLogprob:
        return TokenLogprob(token=text, logprob=log(first), top=((text, log(first)), ("x", log(second))))

    forced = [TokenLogprob(token=text, logprob=0.0) for text in ('{"cita', 'tions":["L1"],', '"category":"')]
    sampled = [token("oom", 0.7, 0.2), token("_memory", 0.9, 0.05)]
    rest = [
        TokenLogprob(token='","severity":"', logprob=0.0),
        token("high", 0.51, 0.49),
        TokenLogprob(token='"}', logprob=0.0),
    ]
    assert token_margin_of([*forced, *sampled, *rest], "category") == pytest.approx(0.5)
    assert token_margin_of(forced, "category") is None
    assert token_margin_of([], "category") is None
