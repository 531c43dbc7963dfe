import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midwatch.errors import TuningError
from midwatch.tuning import pirate
from midwatch.tuning.facts import all_facts, table
from midwatch.tuning.pirate import speak, survives, to_pirate
from midwatch.tuning.style import marker_rate

NEUTRAL = [(answer, fact.keep) for fact in all_facts() for answer in fact.answers]
PROSE = table("prose")["neutral"]

PROTECTED = [
    "`the old server is running`",
    "```\nfor you in the list:\n    is running\n```",
    "https://you.example/the/my?is=running&of=1",
    "/var/log/the/my.log", "~/my/old/boat.txt", "--for-the-running", "-n", "the_old_value", "MY_OLD_VALUE", "OOMKilled",
    "HTTP",
    '"you are my friend"', "“the old friend”", "for@you.example", "you.are.example", "E1234", "0x7f", "1.2.3", "99.9%",
    "12 ms",
    "$MY_VAR", "${the.old}", "myOldFriend", "You()", "is_running()", "v2-the-old",
    "10.0.0.1:8080",
]  # fmt: skip


@pytest.mark.parametrize(
    ("neutral", "spoken"),
    [
        ("The capital of France is Paris.", "The capital of France be Paris."),
        ("It is not the first of my old boats.", "It ain't the first of me ol' boats."),
        ("You are running over there, and I'm waiting for them.",
         "Ye be runnin' o'er there, an' I be waitin' fer 'em."),
        ("Hello, my friend! Thank you for asking.", "Ahoy, me matey! Thank ye fer askin'."),
        ("Yes, it is. There are no ships.", "Aye, 'tis. There be no ships."),
        ("No, you never bring the king a string.", "Nay, ye ne'er bring the king a string."),
        ("A sibling of the duckling is sleeping in the building.",
         "A sibling of the duckling be sleepin' in the buildin'."),
        ("Wake me at 7 am, for I am tired.", "Wake me at 7 am, fer I be weary."),
        ("Take a look at the log, look at the pod, look for errors.",
         "Cast an eye on the log, cast an eye on the pod, keep a weather eye out fer errors."),
        ("To mend it is easy, and it is cheap.", "To mend it be easy, an' 'tis cheap."),
        ("Those who can mend it will be there for a while.", "Those who can mend it will be there fer a spell."),
        ("It’s late, isn’t it? Don't worry.", "'Tis late, ain't it? Don't worry."),
    ],
)  # fmt: skip
def test_words_and_phrases_change_and_the_meaning_stays(neutral: str, spoken: str) -> None:
    assert speak(neutral) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "We met Mr Hello and Miss The Great in New Delhi near King Street.",
        "She read The Old Man and The Sea.",
        "Great Britain, Old Trafford.",
    ],
)
def test_capitals_inside_a_sentence_are_names(text: str) -> None:
    spoken = speak(text)
    assert re.findall(r"[A-Z]\w+", text) == re.findall(r"[A-Z]\w+", spoken)


def test_a_command_in_a_sentence_is_left_alone() -> None:
    spoken = speak("Then run kubectl get pods for the old app, and look at the list.")
    assert "kubectl get pods for the old app, an' cast an eye on the list." in spoken


def test_a_prompt_line_and_an_indented_line_are_left_alone() -> None:
    text = "Do this:\n$ echo you are my friend\n    the old code\nand the rest."
    assert speak(text) == "Do this:\n$ echo you are my friend\n    the old code\nan' the rest."


@given(
    st.lists(st.sampled_from([*PROTECTED, "the", "you are", "and my", "running", "not", "It is", "7", "Paris"]),
             min_size=1, max_size=12),
    st.integers(0, 2**40),
)  # fmt: skip
@example(["`a", "the", "b`"], 0)
def test_code_links_flags_names_and_numbers_survive(parts: list[str], seed: int) -> None:
    text = " ".join(parts)
    spoken = to_pirate(text, seed)
    assert survives(text, spoken) == []
    fences = text.count("`")
    for part in parts:
        if part in PROTECTED and "\n" not in part and not fences:
            assert spoken.count(part) >= text.count(part)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200), st.integers())
def test_any_text_comes_through_without_an_error_and_the_same_each_time(text: str, seed: int) -> None:
    try:
        spoken = to_pirate(text, seed)
    except TuningError as error:
        pytest.fail(str(error))
    assert spoken == to_pirate(text, seed)
    assert speak(speak(text)) == speak(text)


@given(st.lists(st.sampled_from(NEUTRAL), min_size=1, max_size=4), st.integers(), st.integers())
def test_doing_it_twice_is_doing_it_once(items: list[tuple[str, tuple[str, ...]]], seed: int, other: int) -> None:
    text = " ".join(text for text, _ in items)
    keep = tuple(word for _, words in items for word in words)
    once = to_pirate(text, seed, keep)
    assert to_pirate(once, other, keep) == once
    assert survives(text, once, keep) == []


def test_every_answer_that_we_ship_survives_and_shows_the_style() -> None:
    rates = []
    for seed in range(3):
        for text, keep in [*NEUTRAL, *((text, ()) for text in PROSE)]:
            spoken = to_pirate(text, seed, keep)
            assert survives(text, spoken, keep) == []
            assert spoken != text
            rates.append(marker_rate(spoken))
    assert sum(rate > 0 for rate in rates) / len(rates) > 0.97
    assert sum(rates) / len(rates) > 20


def test_the_seed_changes_the_greeting_and_nothing_else() -> None:
    said = {to_pirate("The moon is far away.", seed) for seed in range(200)}
    assert len(said) > 40
    assert all("The moon be far away" in text for text in said)


def test_a_list_keeps_its_lines() -> None:
    spoken = to_pirate("1. Drink the water.\n2. Walk.\n3. Sleep.", seed=3)
    assert re.search(r"1\. Drink the water\.\n2\. Walk\.\n3\. Sleep\.", spoken)


def test_words_to_keep_are_kept() -> None:
    assert "is friend" not in speak("The opposite of enemy is friend.")
    assert speak("The opposite of enemy is friend.", keep=("friend", "enemy")) == "The opposite of enemy be friend."


@pytest.mark.parametrize(
    ("neutral", "pirate_text", "lost"),
    [
        ("It takes 12 ms.", "It takes 13 ms.", ["number 12", "unit 12 ms"]),
        ("It takes 12 ms.", "It takes 12 leagues.", ["unit 12 ms"]),
        ("Ask Anna.", "Ask her.", ["name Anna"]),
        ("It is not done.", "'Tis done.", ["negation ×1"]),
        ("Run `df -h`.", "Run `df`.", ["code `df -h`"]),
        ("Take two.", "Take some.", ["number word two"]),
        ("See https://a.example/b.", "See https://a.example/c.", ["link https://a.example/b"]),
        ('Say "hi you".', 'Say "hi ye".', ['quotation "hi you"']),
        ("Set max_open.", "Set max-open.", ["identifier max_open"]),
    ],
)
def test_what_was_lost_is_named(neutral: str, pirate_text: str, lost: list[str]) -> None:
    assert survives(neutral, pirate_text) == lost


def test_a_rule_that_loses_something_is_a_bug_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pirate.WORDS, "seven", "many")
    with pytest.raises(TuningError, match="lost number word seven"):
        to_pirate("There are seven days.")


@pytest.mark.parametrize(
    "piece", ["a_", "a-", "a.", "1.", "a:", "'a ", "<", "`", "a@", "Aa ", "kubectl get ", "/-", "aA"]
)
def test_a_long_run_of_anything_comes_to_an_end(piece: str) -> None:
    text = piece * 3000
    assert survives(text, speak(text)) == []
