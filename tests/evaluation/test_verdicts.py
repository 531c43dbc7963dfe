from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdict_kit import finding, incident, verdict

from midwatch.evaluation import verdict as verdicts
from midwatch.evaluation.verdict import as_object, from_object, of, same_entity, wording

LOG = (
    "2026-11-23T10:00:01Z shop started",
    "2026-11-23T10:00:02Z shop killed by signal 9, request 4f1c2ab9d0",
    "2026-11-23T10:00:09Z shop killed by signal 9, request 77d0a1b2c3",
    "2026-11-23T10:00:10Z shop exit code 137",
    "2026-11-23T10:00:11Z all is well",
)


def test_a_line_of_the_same_wording_is_as_telling_as_the_labelled_one() -> None:
    case = incident("a", *LOG, true=(2, 4))
    found = of(case, finding(case.case, shown=(1, 3, 5), cited=(3, 5)), "local")
    assert (found.truth_total, found.truth_shown, found.truth_cited, found.cited_right) == (2, 1, 1, 1)
    assert [line.number for line in found.evidence if line.true] == [3]


def test_labelled_repeats_count_once() -> None:
    case = incident("a", *LOG, true=(2, 3))
    found = of(case, finding(case.case, shown=(2, 3), cited=(2, 3)), "local")
    assert (found.truth_total, found.truth_cited, found.cited_right) == (1, 1, 2)


def test_lines_of_numbers_alone_are_told_apart_by_their_place() -> None:
    case = incident("a", "17 18", "19 20", true=(1,))
    found = of(case, finding(case.case, shown=(2,), cited=(2,)), "local")
    assert (found.truth_total, found.truth_shown, found.cited_right) == (1, 0, 0)


def test_a_label_beyond_the_log_is_ignored() -> None:
    case = incident("a", *LOG, true=(2, 99))
    assert of(case, finding(case.case), "local").truth_total == 1


def test_the_answer_leads_the_ranking_once() -> None:
    case = incident("a", *LOG)
    found = of(case, finding(case.case, category="dns_resolution"), "local")
    assert found.ranking == ("dns_resolution",)
    assert of(case, finding(case.case), "local").ranking == ("oom_memory", "dns_resolution")


def test_seconds_and_dollars_are_the_diagnosis_own() -> None:
    case = incident("a", *LOG)
    found = of(case, finding(case.case), "local", sent_tokens=321)
    assert (found.seconds, found.cost_usd, found.sent_tokens, found.lines) == (2.0, 0.001, 321, 5)


def test_an_answer_that_was_escalated_keeps_what_came_before() -> None:
    from dataclasses import replace

    case = incident("a", *LOG)
    first = finding(case.case, category="dns_resolution", confidence=0.3)
    found = of(case, replace(finding(case.case, escalated=True), first=first.diagnosis), "escalated")
    assert (found.escalated, found.first_category, found.first_confidence) == (True, "dns_resolution", 0.3)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Redis", "redis", True),
        ("redis:6379", "redis", True),
        ("ts-contacts-service-866bd68c97-xcqfx", "ts-contacts-service", True),
        ("redis-1", "redis-2", False),
        ("order-service-proxy", "order", False),
        ("unknown", "redis", False),
    ],
)
def test_entities_are_the_same_but_for_case_port_and_pod_suffix(first: str, second: str, same: bool) -> None:
    assert same_entity(first, second) is same


def test_wording_forgets_times_numbers_and_ids_but_not_words() -> None:
    assert wording(LOG[1]) == wording(LOG[2])
    assert wording("Timeout Zone TTL") == "Timeout Zone TTL"
    assert wording("error in cafe") != wording("error in face")


@given(st.text(max_size=30), st.lists(st.integers(1, 9), max_size=4), st.floats(0, 1))
def test_a_verdict_comes_back_from_its_object(text: str, numbers: list[int], confidence: float) -> None:
    before = verdict(
        text,
        confidence=confidence,
        cited=tuple(numbers),
        shown=tuple(numbers),
        cited_text=tuple(text for _ in numbers),
        features={"coverage": confidence},
        evidence=tuple(verdicts.Shown(number=number, text=text, true=number > 4) for number in numbers),
    )
    try:
        stored = orjson.dumps(as_object(before))
    except orjson.JSONEncodeError:  # half of a surrogate pair: logs are decoded with replacement, so none has it
        assert not text.isprintable()
        return
    assert from_object(orjson.loads(stored)) == before
