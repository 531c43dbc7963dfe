"""What an evaluation of the pirate's style asks, and how it tells the style: questions and classifier, put together."""

from __future__ import annotations

import re

from midwatch.errors import TuningError
from midwatch.tuning import questions
from midwatch.tuning.evaluation import Suite
from midwatch.tuning.style import PHRASES, is_marker, marker_rate, pirate_classifier, words_of

CHOOSING = 24
"""Prompts that choose the system prompt of the prompted base, beside those that measure."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_PHRASE = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE)
_WORD = re.compile(r"['’]?[^\W\d_]+(?:['’-][^\W\d_]+)*['’]?")


def pirate(prompts: int, seed: int = 0) -> Suite:
    """So many prompts per measure, none of which any training has seen; the seed draws them from all there are.

    Requests for plain English are about the same subjects as the prompts that ask for nothing. Raises `TuningError`
    for more than there are.
    """
    try:
        drawn = questions.style_prompts(prompts + CHOOSING, seed)
        closed = questions.closed_questions(prompts + CHOOSING, seed)
    except TuningError as error:
        raise TuningError(
            error.what, f"Lower --prompts; {CHOOSING} more are taken to choose the base's system prompt."
        ) from None
    choosing, style = drawn[:CHOOSING], drawn[CHOOSING:]
    return Suite(
        choosing=choosing,
        style=style,
        closed=[item for item in closed if item.messages not in choosing][:prompts],
        plain=[questions.ask_plainly(chat, seed) for chat in style],
        shown=questions.ten_prompts(),
        ask_plainly=lambda chat: questions.ask_plainly(chat, seed),
    )


class PirateJudge:
    """Tells a pirate by the classifier and by markers; the classifier is trained here, in seconds."""

    def __init__(self) -> None:
        self._classifier = pirate_classifier()

    def is_styled(self, text: str) -> bool:
        """Whether the classifier takes it for a pirate's."""
        return self._classifier.is_pirate(text)

    def marker_rate(self, text: str) -> float:
        """Markers per 100 words."""
        return marker_rate(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the markers are, words and whole phrases; code holds none."""
        prose = _CODE.sub(lambda code: " " * len(code[0]), text)
        found = [phrase.span() for phrase in _PHRASE.finditer(prose)]
        bare = _PHRASE.sub(lambda phrase: " " * len(phrase[0]), prose)
        return sorted(found + [word.span() for word in _WORD.finditer(bare) if any(map(is_marker, words_of(word[0])))])
