"""Words, and the formula that weighs them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.bm25 import BM25, K1, B, singular, words


def test_a_name_in_humps_gives_its_parts_and_itself() -> None:
    assert words("KubePodNotReady") == ["kube", "pod", "ready", "kubepodnotready"]
    assert words("HTTPServerErrors on db-01") == ["http", "server", "error", "httpservererror", "db", "01"]


def test_stop_words_and_single_letters_say_nothing() -> None:
    assert words("the cause of a failure is not in x") == ["cause", "failure"]


@pytest.mark.parametrize(
    ("plural", "one"), [("pods", "pod"), ("queries", "query"), ("status", "status"), ("process", "process")]
)
def test_a_plural_meets_its_singular(plural: str, one: str) -> None:
    assert singular(plural) == one


def test_words_of_other_alphabets_are_kept() -> None:
    assert words("ошибка базы 数据库") == ["ошибка", "базы", "数据库"]


@given(st.text(max_size=200))
def test_any_text_has_words(text: str) -> None:
    assert all(word and word == word.lower() for word in words(text))


def test_the_score_is_the_published_formula() -> None:
    index = BM25([["disk", "full", "disk"], ["disk", "slow"], ["certificate"]])
    found = index.matches(["disk", "full"])
    mean = 2.0

    def weight(count: int, length: int, having: int) -> float:
        idf = math.log(1 + (3 - having + 0.5) / (having + 0.5))
        return idf * count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean))

    assert found[0].score == pytest.approx(weight(2, 3, 2) + weight(1, 3, 1))
    assert found[1].score == pytest.approx(weight(1, 2, 2))
    assert set(found) == {0, 1}


def test_a_match_says_how_much_of_the_query_it_has() -> None:
    index = BM25([["disk", "full"], ["disk"]])
    found = index.matches(["disk", "full", "moon"])
    total = index.idf("disk") + index.idf("full") + index.idf("moon")
    assert found[0].share == pytest.approx((index.idf("disk") + index.idf("full")) / total)
    assert (found[0].terms, found[1].terms) == (2, 1)
    assert index.idf("moon") > index.idf("full") > index.idf("disk") > 0


def test_a_repeated_word_of_the_query_counts_once() -> None:
    index = BM25([["disk"], ["full"]])
    assert index.matches(["disk", "disk"]) == index.matches(["disk"])


def test_nothing_is_found_in_nothing() -> None:
    assert BM25([]).matches(["disk"]) == {}
    assert BM25([["disk"]]).matches([]) == {}
