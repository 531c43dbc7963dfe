import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.errors import TuningError
from midwatch.tuning import arithmetic
from midwatch.tuning.arithmetic import make_problem
from midwatch.tuning.conversations import Conversation
from midwatch.tuning.datasets import describe, make, names
from midwatch.tuning.facts import SPLITS, all_facts, facts_of, split_of, table
from midwatch.tuning.style import marker_rate

TRAIN = make("pirate")


def own_questions(conversations: list[Conversation]) -> set[str]:
    """Questions without the requests around them."""
    around = [text for kind in table("requests").values() for text in kind["user"]]
    bare = set()
    for item in conversations:
        for message in item.messages:
            if message.role == "user":
                bare.add(message.content)
                for text in around:
                    before, _, after = text.partition("{0}")
                    if message.content.startswith(before) and message.content.endswith(after):
                        bare.add(message.content[len(before) : len(message.content) - len(after)])
    return bare


def test_the_same_seed_gives_the_same_data_and_another_seed_gives_other_data() -> None:
    assert make("pirate", 50, seed=3) == make("pirate", 50, seed=3)
    assert make("pirate", 50, seed=3) != make("pirate", 50, seed=4)


def test_conversations_are_well_formed_and_tagged() -> None:
    assert len(TRAIN) == 1200
    for item in TRAIN:
        turns = [m.role for m in item.messages if m.role != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message.content.strip() == message.content for message in item.messages)
        assert item.tags["style"] in ("pirate", "plain")
        assert item.tags["kind"] in ("sre", "general", "arithmetic")


def test_about_two_in_five_ask_for_plain_english_and_get_it() -> None:
    plain = [item for item in TRAIN if item.tags["style"] == "plain"]
    assert 0.35 < len(plain) / len(TRAIN) < 0.45
    assert max(marker_rate(item.answer) for item in plain) == 0
    written, parts = table("requests")["plain"], table("request_parts")
    for item in plain:
        asked = [item.messages[0].content, item.question]
        by_hand = any(re.fullmatch(re.escape(text).replace(r"\{0\}", ".*"), asked[1]) for text in written["user"])
        put_together = any(
            f" {part}." in text for kind in ("tone", "manner", "avoided") for part in parts[kind] for text in asked
        )
        assert by_hand or put_together or asked[0] in written["system"]


def test_no_training_asks_for_plain_english_in_the_words_of_an_evaluation() -> None:
    unseen = table("requests")["plain_unseen"]
    cores = [text.replace("{0}", "").strip(" .:,").casefold() for texts in unseen.values() for text in texts]
    for item in make("pirate", 3000, seed=5):
        for message in item.messages:
            assert not any(core in message.content.casefold() for core in cores)


def test_nearly_every_pirate_answer_shows_the_style() -> None:
    rates = [marker_rate(item.answer) for item in TRAIN if item.tags["style"] == "pirate"]
    assert sum(rate >= 5 for rate in rates) / len(rates) > 0.98


@given(st.sampled_from(SPLITS), st.sampled_from(SPLITS), st.integers(0, 50), st.integers(0, 50))
def test_splits_share_no_fact_and_no_question(one: str, other: str, seed: int, another: int) -> None:
    if one == other:
        return
    first, second = make("pirate", 60, seed, one), make("pirate", 60, another, other)
    taught = {fact.key for fact in all_facts()}
    facts = [{item.tags["fact"] for item in items} & taught for items in (first, second)]
    assert not facts[0] & facts[1]
    shared = own_questions(first) & own_questions(second)
    assert all(re.search(r"\d", question) for question in shared), shared  # sums may meet by chance


def test_every_fact_is_in_one_split_and_every_split_has_all_kinds() -> None:
    facts = all_facts()
    assert len({fact.key for fact in facts}) == len(facts)
    questions = [question for fact in facts for question in fact.questions]
    assert len(set(questions)) == len(questions)
    for split in SPLITS:
        assert {fact.kind for fact in facts_of(split)} == {"sre", "general"}
    assert len([fact for fact in facts if fact.family not in {"capital", "opposite"}]) > 300


@given(st.text(max_size=30))
def test_a_facts_split_hangs_on_its_name_alone(key: str) -> None:
    assert split_of(key) == split_of(key)
    assert split_of(key) in SPLITS


def test_the_last_way_to_ask_is_never_trained_on() -> None:
    held = {fact.questions[-1] for fact in all_facts() if len(fact.questions) >= 3}
    assert held
    assert not held & own_questions(make("pirate", 3000, seed=1))


def test_an_unknown_name_or_split_is_told_what_there_is() -> None:
    with pytest.raises(TuningError, match="no data set 'parrot'. Midwatch makes pirate"):
        make("parrot")
    with pytest.raises(TuningError, match="Splits are train, heldout, classifier"):
        make("pirate", split="test")
    assert names() == ["pirate"]


def test_a_description_counts_what_is_there() -> None:
    told = describe(TRAIN)
    assert told["conversations"] == 1200
    assert sum(told["kinds"].values()) == 1200
    assert told["distinct_questions"] > 900


TEMPLATES = [arithmetic.STORIES, arithmetic.SUMS, arithmetic.HELDOUT_STORIES, arithmetic.HELDOUT_SUMS]


@given(st.integers(), st.sampled_from(TEMPLATES))
def test_every_worked_answer_is_right(seed: int, templates: dict[str, tuple[str, str, str]]) -> None:
    problem = make_problem(random.Random(seed), templates)
    assert int(problem.gold) >= 0
    steps = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", problem.answer)
    for left, sign, right, result in steps:
        done = {"+": int(left) + int(right), "-": int(left) - int(right), "x": int(left) * int(right)}
        assert (int(left) / int(right) if sign == "/" else done[sign]) == int(result)
    words = re.search(r"(\d+) (plus|minus) (\d+) is (\d+)", problem.answer)
    if words:
        left, sign, right, result = words.groups()
        assert int(left) + (1 if sign == "plus" else -1) * int(right) == int(result)
    assert steps or words or "sum of" in problem.answer
    assert re.findall(r"\d+", problem.answer)[-1] == problem.gold or problem.template == "shares"
