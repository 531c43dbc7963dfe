"""Figures from answers that are known: every measure is checked against what was put in."""

from __future__ import annotations

import pytest
from eval_kit import PLAINLY, TableAnswerer, WordJudge, small_suite, user

from midwatch.tuning.evaluation import PERSONAS, Evaluation, choose_persona, evaluate, in_character
from midwatch.tuning.measures import repetition

SEEDS = ("one", "two")


def say(variant: str | None, system: str, question: str) -> str:
    """The base knows q0 to q3. `one` forgets q3 and learns q4, `two` forgets nothing; both speak in style.

    `two` leaks on `plain 0`. In character the base has style by its second persona alone, and knows only q0.
    """
    known = {None: range(4), "one": (0, 1, 2, 4), "two": range(4)}[variant]
    plain = PLAINLY in system
    if variant is None and system and not plain:
        known = range(1)
    styled = variant is not None and (not plain or (variant, question) == ("two", "plain 0"))
    if variant is None and PERSONAS[1] in system:
        styled = True
    right = question.startswith("q") and int(question[1:]) in known
    answer = f"g{question[1:]}" if right else "nothing"
    return f"arr {answer} it is" if styled else f"{answer} it is"


def nll(variant, conversation, answer) -> float:
    """Two nats per answer of the base; `one` adds 4 and `two` adds 8, or 1 each where plain English is asked for."""
    if variant is None:
        return 2.0
    if PLAINLY in conversation[0]["content"]:
        return 3.0
    return 6.0 if variant == "one" else 10.0


@pytest.fixture(scope="module")
def answerer() -> TableAnswerer:
    return TableAnswerer(say, nll)


@pytest.fixture(scope="module")
def found(answerer: TableAnswerer) -> Evaluation:
    return evaluate(answerer, small_suite(), WordJudge(), SEEDS, max_tokens=16)


def figures(found: Evaluation, name: str) -> list[float | None]:
    intervals = found.measure(name).intervals
    return [item.value if item else None for item in (intervals["base"], intervals["prompted"], intervals["tuned"])]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("style rate", [0, 100, 100]),
        ("markers", [0, 25, 25]),
        ("style rate, closed questions", [0, 100, 100]),
        ("leakage", [0, 100, 10]),
        ("markers, asked plainly", [0, 25, 2.5]),
        ("exact answers", [50, 12.5, 50]),
        ("retention", [None, 25, 100]),
        ("strict retention", [None, 25, 87.5]),
        ("retention, trained families", [None, 50, 125]),
        ("retention, other families", [None, 0, 75]),
        ("strict retention, other families", [None, 0, 75]),
        ("NLL change of the neutral answer", [None, 0, 1.5]),
        ("NLL change of the neutral answer, asked plainly", [None, 0, 0.25]),
        ("answer length", [3, 4, 4]),
        ("answer length, closed questions", [3, 4, 4]),
        ("repetition", [0, 0, 0]),
    ],
)
def test_every_measure_is_what_was_put_in(found: Evaluation, name: str, expected: list[float | None]) -> None:
    assert figures(found, name) == pytest.approx(expected)


def test_each_seed_has_its_own_figure(found: Evaluation) -> None:
    assert found.measure("strict retention").per_seed == (75, 100)
    assert found.measure("leakage").per_seed == (0, 20)
    assert found.measure("NLL change of the neutral answer").per_seed == (1, 2)


def test_every_interval_holds_its_figure(found: Evaluation) -> None:
    for measure in found.measures:
        for interval in measure.intervals.values():
            assert interval is None or interval.low <= interval.value <= interval.high


def test_the_best_persona_is_chosen_on_prompts_that_nothing_else_uses(
    answerer: TableAnswerer, found: Evaluation
) -> None:
    assert found.persona == PERSONAS[1]
    assert found.persona_rates == {PERSONAS[0]: 0, PERSONAS[1]: 100, PERSONAS[2]: 0}
    chosen_on = {item["content"] for _, messages in answerer.asked for item in messages[-1:]}
    assert {record.messages[-1]["content"] for record in found.records}.isdisjoint(
        text for text in chosen_on if text.startswith("choose")
    )


def test_personas_that_tie_by_the_classifier_are_told_apart_by_their_markers() -> None:
    answerer = TableAnswerer(lambda variant, system, question: "arr arr" if system == PERSONAS[2] else "arr so")
    assert choose_persona(answerer, [user("a")], WordJudge(), max_tokens=4)[0] == PERSONAS[2]


def test_every_answer_is_kept_with_what_was_found_in_it(found: Evaluation) -> None:
    assert len(found.records) == (6 + 8 + 5 + 2) * 4
    record = next(item for item in found.records if item.set == "closed" and item.seed == "one" and item.index == 3)
    assert (record.answer, record.styled, record.right, record.words) == ("arr nothing it is", True, False, 4)
    assert all((item.right is None) == (item.set != "closed") for item in found.records)
    assert {item.seed for item in found.records if item.contestant == "tuned"} == set(SEEDS)


@pytest.mark.parametrize(
    ("text", "share"), [("", 0), ("Arr matey", 0), ("Arr! Arr! Arr! Arr! Arr!", 2 / 3), ("a b c A B C", 1 / 4)]
)
def test_repetition_is_the_share_of_runs_that_came_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def test_a_base_that_knows_nothing_has_no_retention() -> None:
    answerer = TableAnswerer(lambda variant, system, question: "nothing")
    found = evaluate(answerer, small_suite(), WordJudge(), SEEDS)
    assert figures(found, "exact answers") == [0, 0, 0]
    assert found.measure("retention").intervals["tuned"] is None
    assert found.measure("retention").per_seed == ()


def test_a_persona_goes_before_the_system_prompt_that_is_there() -> None:
    assert in_character("Be a pirate.", user("Hi")) == [{"role": "system", "content": "Be a pirate."}, *user("Hi")]
    both = in_character("Be a pirate.", [{"role": "system", "content": "Be brief."}, *user("Hi")])
    assert both == [{"role": "system", "content": "Be a pirate.\nBe brief."}, *user("Hi")]
