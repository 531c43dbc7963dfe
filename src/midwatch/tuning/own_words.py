"""The base's own answers in place of the tables': what is taught is the manner, and no new fact.

A small model that is taught facts it does not hold learns to invent (Gekhman et al., arXiv 2405.05904); an answer in
its own words leaves only the style to learn. The tables' answer stays where it is long, and where the base is wrong,
rambles or says nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from midwatch.errors import TuningError
from midwatch.tuning.pirate import to_pirate
from midwatch.tuning.questions import is_exact
from midwatch.tuning.style import marker_rate

AnswerAll = Callable[[Sequence[str]], Sequence[str]]
"""Greedy answers of the base to these questions, each asked alone."""
MAX_TOKENS = 40
"""Tokens that the base may answer with; what is no whole sentence by then is cut."""
LONG_WORDS = 25
"""A longer answer of the tables (a letter, a story, a list) stays: the base's would be cut off in its middle."""
_SENTENCE_END = re.compile(r"(?<!\d)[.!?][\"'”’)]?(?=\s|$)")
_REPEATED = 4


class Answered(Protocol):
    """A question with its neutral answer."""

    @property
    def question(self) -> str:
        """What is asked."""
        ...

    @property
    def answer(self) -> str:
        """The answer so far."""
        ...

    @property
    def gold(self) -> str:
        """What a right answer holds; empty where there is no one answer."""
        ...

    @property
    def rivals(self) -> tuple[str, ...]:
        """What a right answer does not say."""
        ...


P = TypeVar("P", bound=Answered)


def in_own_words(pairs: Sequence[P], answer_all: AnswerAll) -> list[P]:
    """The same questions; with the base's answers where these are right, whole and to the point."""
    asked = list(dict.fromkeys(pair.question for pair in pairs))
    said = dict(zip(asked, map(whole_sentences, answer_all(asked)), strict=True))
    return [
        dataclasses.replace(pair, answer=said[pair.question], keep=())  # type: ignore[type-var]
        if len(pair.answer.split()) <= LONG_WORDS and is_usable(said[pair.question], pair.gold, pair.rivals)
        else pair
        for pair in pairs
    ]


def whole_sentences(text: str) -> str:
    """The text up to its last whole sentence."""
    text = text.strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def is_usable(text: str, gold: str, rivals: Sequence[str]) -> bool:
    """Whether an answer is there, right, plain, without repetition, and can be told as a pirate without a loss."""
    if marker_rate(text) or text.count("`") % 2:
        return False
    words = text.lower().split()
    runs = [tuple(words[index : index + _REPEATED]) for index in range(len(words) - _REPEATED + 1)]
    if not words or len(runs) != len(set(runs)) or (gold and not is_exact(text, gold, rivals)):
        return False
    try:
        to_pirate(text)
    except TuningError:
        return False
    return True
