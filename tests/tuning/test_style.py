import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.errors import TuningError
from midwatch.tuning.datasets import make
from midwatch.tuning.facts import table
from midwatch.tuning.pirate import speak
from midwatch.tuning.style import StyleClassifier, is_marker, labelled_texts, marker_rate, pirate_classifier


def test_accuracy_on_pairs_of_its_own_that_it_has_not_seen() -> None:
    classifier = pirate_classifier()
    styled, plain = labelled_texts("test")
    right = sum(map(classifier.is_pirate, styled)) + sum(not classifier.is_pirate(text) for text in plain)
    assert right / (len(styled) + len(plain)) >= 0.98


def test_accuracy_on_answers_of_held_out_facts() -> None:
    classifier = pirate_classifier()
    data = make("pirate", 600, split="heldout")
    right = sum(classifier.is_pirate(item.answer) == (item.tags["style"] == "pirate") for item in data)
    assert right / len(data) >= 0.99


@pytest.mark.parametrize(
    "text",
    [
        "Who was Blackbeard? He was an English pirate who sailed the Caribbean with a large crew.",
        "The captain ordered his crew to hoist the sails and to drop the anchor near the island.",
        "The treasure of the pirates was buried on an island, and nobody has found the chest of gold.",
        "As a pirate, I sail the seven seas in search of treasure and gold.",
        "Great job! That is wonderful! I am so happy for you!",
        "Be careful! Don't be late!",
        "Yes! You can do it! Go for it!",
        "Rock 'n' roll is fun. He said 'hello' to me.",
        "Paris.",
        "",
        "12",
        "Ahoy, matey! The capital of France is Paris, which is one of the most beautiful cities in the world.",
        "Arrr! Th' moon is the only natural satellite of the Earth. It is 384,000 km away and takes 27 days to travel.",
    ],
)
def test_plain_and_half_plain_texts_are_no_pirates(text: str) -> None:
    assert not pirate_classifier().is_pirate(text)


@pytest.mark.parametrize(
    "text",
    [
        "Ahoy!",
        "Arrr! Paris. Savvy?",
        "Th' capital o' France be Paris.",
        "Arrr, matey! Th' moon be th' only satellite o' th' Earth, an' 'tis 384,000 km away. Savvy?",
        "Ahoy, ye landlubber! Yer pods be restartin' fer lack o' memory. Cast an eye on th' limits.",
    ],
)
def test_pirates_are_pirates(text: str) -> None:
    assert pirate_classifier().is_pirate(text)


def test_the_two_parts_share_no_prose_and_the_tunings_facts_are_elsewhere() -> None:
    fit, test = ({text for side in labelled_texts(part) for text in side} for part in ("fit", "test"))
    assert not {text for text in table("prose")["neutral"] if text in fit and text in test}
    answers = {item.answer for item in make("pirate", 1500) if item.tags["kind"] != "arithmetic"}
    assert not {text for text in answers & (fit | test) if len(text.split()) > 6}
    with pytest.raises(TuningError, match="Ask for fit or test"):
        labelled_texts("train")


def test_a_classifier_needs_both_sides() -> None:
    with pytest.raises(TuningError, match="both sides"):
        StyleClassifier.fit([], ["x"])


def test_any_style_can_be_told_from_another() -> None:
    calm = ["it is a good day", "it is a fine day", "a good day it is"]
    loud = ["WOW what a day", "wow wow what fun", "wow such a day"]
    classifier = StyleClassifier.fit(loud, calm)
    assert classifier.probability("wow a day") > 0.5 > classifier.probability("it is a day")
    assert classifier.probability("unknown words only") == 0


@pytest.mark.parametrize(
    "word", ["ahoy", "arr", "arrrr", "yarr", "th'", "o'", "'tis", "runnin'", "ye", "matey", "argh"]
)
def test_pirate_words_are_markers(word: str) -> None:
    assert is_marker(word)
    assert marker_rate(word) == 100


@pytest.mark.parametrize("word", ["the", "be", "me", "arrow", "array", "in", "cabin", "running", "captain", "pirate"])
def test_neutral_words_are_none(word: str) -> None:
    assert not is_marker(word)


def test_markers_are_counted_per_hundred_words_and_not_in_code() -> None:
    assert marker_rate("Th' moon be far") == 25
    assert marker_rate("`th' ye arr` is far") == 0
    assert marker_rate("") == 0
    assert marker_rate("Th’ moon be far") == 25


@given(st.text(max_size=300))
def test_any_text_has_a_rate_and_a_probability(text: str) -> None:
    assert 0 <= marker_rate(text) <= 100
    assert 0 <= pirate_classifier().probability(text) <= 1


def test_speaking_raises_the_rate_of_every_neutral_prose() -> None:
    for text in table("prose")["neutral"]:
        assert marker_rate(text) == 0
        assert marker_rate(speak(text)) > 0 or len(text.split()) < 40
