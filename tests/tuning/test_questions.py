import pytest

from midwatch.errors import TuningError
from midwatch.tuning.datasets import make
from midwatch.tuning.facts import facts_of, table
from midwatch.tuning.questions import (
    ask_plainly,
    closed_questions,
    is_exact,
    plain_requests,
    style_prompts,
    ten_prompts,
)
from midwatch.tuning.style import marker_rate

ALL_PROMPTS = 200
TAUGHT = {
    message.content.casefold()
    for seed in range(3)
    for item in make("pirate", 1500, seed)
    for message in item.messages
    if message.role == "user"
}
TAUGHT_FACTS = {question.casefold() for fact in facts_of("train") for question in fact.questions}


def test_prompts_are_many_distinct_and_never_trained_on() -> None:
    prompts = [chat[-1]["content"] for chat in style_prompts(ALL_PROMPTS) + ten_prompts()]
    assert len(set(prompts)) == len(prompts)
    assert len(table("unseen")["prompts"]) >= 120
    for prompt in prompts:
        assert prompt.casefold() not in TAUGHT | TAUGHT_FACTS
        assert not any(prompt.casefold() in question for question in TAUGHT)


def test_there_are_ten_prompts() -> None:
    assert len(ten_prompts()) == 10


def test_requests_for_plain_english_are_worded_as_no_training_words_them() -> None:
    requests = table("requests")
    for place in ("system", "user"):
        trained = {text.casefold().strip() for text in requests["plain"][place]}
        assert not trained & {text.casefold().strip() for text in requests["plain_unseen"][place]}
    for chat in plain_requests(60):
        assert chat[0]["content"] in requests["plain_unseen"]["system"] or len(chat) == 1
        assert chat[-1]["content"].casefold() not in TAUGHT


def test_asking_plainly_keeps_the_question_and_gives_the_same_words_each_time() -> None:
    seen = set()
    for seed in range(40):
        chat = ask_plainly([{"role": "user", "content": "Why?"}], seed)
        assert chat == ask_plainly([{"role": "user", "content": "Why?"}], seed)
        assert "Why?" in chat[-1]["content"]
        seen.add(str(chat))
    assert len(seen) > 8
    with_system = [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]
    assert all(ask_plainly(with_system, seed)[0] == with_system[0] for seed in range(20))


def test_closed_questions_are_right_about_their_own_reference_and_unknown_to_the_training() -> None:
    questions = closed_questions(250)
    assert {item.is_trained_family for item in questions} == {True, False}
    for item in questions:
        assert item.is_right(item.reference), item
        assert marker_rate(item.reference) == 0
        assert not any(item.is_right(rival) for rival in item.rivals), item
        assert not item.is_right("I do not know.")
        if "arithmetic" not in item.family:
            assert item.messages[-1]["content"].casefold() not in TAUGHT | TAUGHT_FACTS


def test_families_that_were_not_trained_on_never_appear_in_training() -> None:
    unseen = {item.family for item in closed_questions(250) if not item.is_trained_family}
    assert len(unseen) >= 8
    assert not unseen & {item.tags["family"] for item in make("pirate", 2000)}


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(TuningError, match=r"There are \d+ closed questions, not 100000"):
        closed_questions(100_000)
    with pytest.raises(TuningError, match="Ask for 1 to"):
        style_prompts(0)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("12", "12"),
        ("The answer is 12.", "12"),
        ("7 + 5 = 12", "12"),
        ("To add 7 and 5, we add them: 7 + 5 = 12. So the answer is **12**.", "12"),
        ("Arrr! 7 plus 5 be 12, matey!", "12"),
        ("There are twelve months.", "12"),
        ("That is $1,200.", "1200"),
        ("It costs 12.00 dollars.", "12"),
        ("PostgreSQL listens on port 5432, matey! Version 9 did too.", "5432"),
        ("Th' answer be 12. Mark me words!", "12"),
        ("12 eggs - 5 eggs = 7 eggs are left", "7"),
        ("a triangle has Three sides", "3"),
        ("The capital of Italy is Rome.", "Rome"),
        ("Arrr! Th' capital o' Italy be ROME, matey!", "Rome"),
        ("It is called Brasilia.", "Brasília|Brasilia"),
        ("It isn't Milan, it's Rome.", "Rome"),
        ("Arrr! It stands fer Central Processin' Unit, matey!", "Central Processing Unit"),
        ("National Aeronautics an' Space Administration", "National Aeronautics and Space Administration"),
    ],
)
def test_a_right_answer_is_right(answer: str, gold: str) -> None:
    assert is_exact(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("", "12"),
        ("13", "12"),
        ("112", "12"),
        ("12.5", "12"),
        ("The answer is 12? No, the answer is 13.", "12"),
        ("7 + 5 = 13", "12"),
        ("Let us add 7 and 5.", "12"),
        ("-12", "12"),
        ("thirteen", "12"),
        ("The capital is Romeville.", "Rome"),
        ("It is not Rome.", "Rome"),
        ("The capital isn't called Rome.", "Rome"),
        ("", "Rome"),
    ],
)
def test_a_wrong_answer_is_wrong(answer: str, gold: str) -> None:
    assert not is_exact(answer, gold)


def test_a_rival_that_is_named_first_makes_an_answer_wrong() -> None:
    rivals = ("Sydney", "Canberra", "New York|NYC")
    assert not is_exact("It is Sydney, near Canberra.", "Canberra", rivals)
    assert not is_exact("NYC, then Canberra.", "Canberra", rivals)
    assert is_exact("It is Canberra, and not Sydney.", "Canberra", rivals)
    assert is_exact("It is not Sydney; it is Canberra.", "Canberra", rivals)
