"""The suite keeps its promises: nothing is asked twice for two purposes, and the judge marks what it counts."""

from __future__ import annotations

import pytest

from midwatch.errors import TuningError
from midwatch.tuning import suite
from midwatch.tuning.datasets import make
from midwatch.tuning.evaluation import Suite


@pytest.fixture(scope="module")
def asked() -> Suite:
    return suite.pirate(120)


@pytest.fixture(scope="module")
def judge() -> suite.PirateJudge:
    return suite.PirateJudge()


def last(conversations) -> list[str]:
    return [item[-1]["content"] for item in conversations]


def test_there_are_as_many_of_each_as_was_asked_for(asked: Suite) -> None:
    assert [len(item) for item in (asked.style, asked.closed, asked.plain, asked.shown)] == [120, 120, 120, 10]
    assert len(set(last(asked.style))) == 120
    assert len({item.messages[-1]["content"] for item in asked.closed}) == 120


def test_what_chooses_the_system_prompt_measures_nothing(asked: Suite) -> None:
    chosen = set(last(asked.choosing))
    assert len(chosen) == suite.CHOOSING
    everything = last(asked.style) + last(asked.shown) + last(item.messages for item in asked.closed)
    assert chosen.isdisjoint(everything)
    assert not any(text in said for text in chosen for said in last(asked.plain))


def test_no_training_conversation_holds_a_prompt(asked: Suite) -> None:
    trained = {
        message.content
        for seed in (0, 1, 2)
        for item in make("pirate", 1600, seed=seed)
        for message in item.messages
        if message.role == "user"
    }
    everything = last(asked.style) + last(asked.shown) + last(item.messages for item in asked.closed)
    assert not trained.intersection(everything)


def test_plain_requests_are_the_prompts_with_a_request(asked: Suite) -> None:
    for prompt, plain in zip(asked.style, asked.plain, strict=True):
        assert list(plain) != list(prompt)
        assert prompt[-1]["content"] in plain[-1]["content"]


def test_both_kinds_of_families_are_among_the_closed_questions(asked: Suite) -> None:
    kinds = [item.is_trained_family for item in asked.closed]
    assert 10 <= sum(kinds) <= 110


def test_every_reference_is_a_right_answer_and_plain_english(asked: Suite, judge: suite.PirateJudge) -> None:
    for item in asked.closed:
        assert item.is_right(item.reference), item
        assert not judge.is_styled(item.reference), item


def test_the_same_seed_asks_the_same_and_another_something_else(asked: Suite) -> None:
    assert suite.pirate(120).style == asked.style
    assert suite.pirate(120, seed=1).style != asked.style


def test_more_prompts_than_there_are_is_an_error_that_names_the_option() -> None:
    with pytest.raises(TuningError, match="Lower --prompts"):
        suite.pirate(100_000)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Arr, matey! Th' pod be down.", ["Arr", "matey", "Th'"]),
        ("Run `ye olde` an’ wait, 'tis slow.", ["an’", "'tis"]),
        ("Goin' down, ye scurvy dog!", ["Goin'", "ye", "scurvy"]),
        ("The pod is down.", []),
    ],
)
def test_the_judge_marks_what_it_counts(judge: suite.PirateJudge, text: str, marked: list[str]) -> None:
    spans = judge.spans(text)
    assert [text[start:end] for start, end in spans] == marked
    assert (judge.marker_rate(text) > 0) == bool(marked)


def test_the_judge_tells_a_pirate_from_his_neighbour(judge: suite.PirateJudge) -> None:
    assert judge.is_styled("Arr, matey! Th' pod be down, an' ye need to check th' logs o' th' server.")
    assert not judge.is_styled("The pod is down, and you need to check the logs of the server.")


def test_as_many_are_marked_as_are_counted_in_a_thousand_answers(judge: suite.PirateJudge) -> None:
    for item in make("pirate", 300, seed=9):
        words = judge.marker_rate(item.answer)
        assert (len(judge.spans(item.answer)) > 0) == (words > 0), item.answer
