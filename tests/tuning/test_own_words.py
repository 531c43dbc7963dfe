"""The base's own answers: taken where they are right, whole and plain, else the tables' stay."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from midwatch.tuning import datasets, questions
from midwatch.tuning.own_words import is_usable, whole_sentences
from midwatch.tuning.style import marker_rate


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("It is Paris. It is a big", "It is Paris."),
        ('She said "no." Then she', 'She said "no."'),
        ("Version 3.14 is out. 1.", "Version 3.14 is out."),
        ("It has no end", ""),
        ("  Yes!  ", "Yes!"),
    ],
)
def test_only_whole_sentences_are_kept(said: str, kept: str) -> None:
    assert whole_sentences(said) == kept


@pytest.mark.parametrize(
    ("text", "gold", "usable"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("The capital of France is Lyon.", "Paris", False),
        ("", "", False),
        ("It is a kind of a tree that is a kind of a tree.", "", False),
        ("Aye, matey, it be so.", "", False),
        ("Run `ls to see it.", "", False),
        ("A tree is a tall plant.", "", True),
    ],
)
def test_an_answer_must_be_right_plain_and_to_the_point(text: str, gold: str, usable: bool) -> None:
    assert is_usable(text, gold, ()) is usable


def test_a_data_set_takes_the_bases_answers_and_is_as_long_as_asked_for() -> None:
    asked: list[str] = []

    def answer_all(asked_now: Sequence[str]) -> list[str]:
        asked.extend(asked_now)
        return [f"Of {question.rstrip('?.').split()[-1]} I know a good deal. And" for question in asked_now]

    made = datasets.make("pirate", 60, seed=1, answer_all=answer_all)
    again = datasets.make("pirate", 60, seed=1, answer_all=answer_all)
    assert len(made) == 60 and made == again
    own = [item for item in made if "a good deal" in item.answer or "know a good" in item.answer]
    assert len(own) > 20
    assert all(marker_rate(item.answer) == 0 for item in made if item.tags["style"] == "plain")
    families = {item.tags["family"] for item in made}
    assert "asked" in families and len(families) > 3


def test_nothing_that_is_asked_after_training_is_asked_before() -> None:
    before: set[str] = set()

    def answer_all(asked_now: Sequence[str]) -> list[str]:
        before.update(asked_now)
        return ["" for _ in asked_now]

    datasets.make("pirate", 400, answer_all=answer_all)
    after = {chat[-1]["content"] for chat in [*questions.style_prompts(250), *questions.ten_prompts()]}
    after |= {item.messages[-1]["content"] for item in questions.closed_questions(300)}
    assert len(before) > 500 and not before & after
