"""What answers are worth: every figure of an evaluation as a table of scores with its interval.

Style is wanted on unseen prompts and is leakage where plain English was asked for. Content is what share of closed
questions is still answered right, and how likely the neutral answer still is.
Legend: S seeds, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from midwatch.results import Direction
from midwatch.tuning.answers import Conversation, Likelihood
from midwatch.tuning.bootstrap import Interval, ratio

BASE, PROMPTED, TUNED = "base", "prompted", "tuned"
CONTESTANTS = (BASE, PROMPTED, TUNED)
STYLE_RATE, RETENTION, LEAKAGE = "style rate", "retention", "leakage"

Scores = NDArray[np.float64]
Answers = Mapping[str, Sequence[Sequence[str]]]
"""Answers by contestant: one list per seed, with one answer per prompt."""
Score = Callable[[int, str], float]
"""What the answer to the prompt of that index is worth."""


class Closed(Protocol):
    """A question with one right answer."""

    @property
    def messages(self) -> Conversation:
        """The question."""
        ...

    @property
    def gold(self) -> str:
        """What a right answer holds."""
        ...

    def is_right(self, answer: str) -> bool:
        """Whether an answer gives what was asked for."""
        ...

    @property
    def reference(self) -> str:
        """A neutral right answer, whole."""
        ...

    @property
    def is_trained_family(self) -> bool:
        """Whether questions of this kind, though not this one, were in the training data."""
        ...


class Judge(Protocol):
    """How the style is told."""

    def is_styled(self, text: str) -> bool:
        """What a classifier trained on other pairs says."""
        ...

    def marker_rate(self, text: str) -> float:
        """Words of the style per 100 words."""
        ...


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the tuned model should reach."""

    value: float
    direction: Direction


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of every contestant; None where it means nothing, such as what the base keeps of itself."""

    name: str
    unit: str
    intervals: dict[str, Interval | None]
    per_seed: tuple[float, ...]
    """Of the tuned model, one per adapter."""
    prompts: int
    aim: Aim | None = None
    note: str = ""


AT_LEAST_95 = Aim(value=95.0, direction="at_least")
AT_MOST_5 = Aim(value=5.0, direction="at_most")


def _measure(
    name: str,
    unit: str,
    tables: dict[str, tuple[Scores, Scores]],
    seed: int,
    *,
    aim: Aim | None = None,
    note: str = "",
) -> Measure:
    """A figure from (above, below) tables by contestant; shares become per cent."""
    factor = 100.0 if unit == "%" else 1.0
    intervals: dict[str, Interval | None] = dict.fromkeys(CONTESTANTS)
    for contestant, (above, below) in tables.items():
        found = ratio(above, below, seed=seed)
        intervals[contestant] = found.scaled(factor) if found else None
    per_seed: list[float] = []
    above, below = tables[TUNED]
    if intervals[TUNED] is not None:
        below = np.broadcast_to(below, above.shape)
        per_seed = [float(factor * above[row].sum() / below[row].sum()) for row in range(len(above))]
    return Measure(
        name=name,
        unit=unit,
        intervals=intervals,
        per_seed=tuple(per_seed),
        prompts=above.shape[1],
        aim=aim,
        note=note,
    )


def _scores(answers: Answers, score: Score) -> dict[str, Scores]:
    """The worth of every answer, [S, P], by contestant."""
    return {
        name: np.array([[score(index, text) for index, text in enumerate(row)] for row in rows], dtype=np.float64)
        for name, rows in answers.items()
    }


def _means(scores: Mapping[str, Scores]) -> dict[str, tuple[Scores, Scores]]:
    return {name: (table, np.ones_like(table)) for name, table in scores.items()}


def style(unseen: Answers, closed: Answers, plain: Answers, judge: Judge, seed: int) -> list[Measure]:
    """How much style there is where it is wanted and where it is not."""

    def rate(index: int, text: str) -> float:
        return float(judge.is_styled(text))

    def markers(index: int, text: str) -> float:
        return judge.marker_rate(text)

    per_words = "per 100 words"
    return [
        _measure(STYLE_RATE, "%", _means(_scores(unseen, rate)), seed, aim=AT_LEAST_95),
        _measure("markers", per_words, _means(_scores(unseen, markers)), seed),
        _measure("style rate, closed questions", "%", _means(_scores(closed, rate)), seed),
        _measure(
            LEAKAGE,
            "%",
            _means(_scores(plain, rate)),
            seed,
            aim=AT_MOST_5,
            note="style rate when asked for plain English",
        ),
        _measure("markers, asked plainly", per_words, _means(_scores(plain, markers)), seed),
    ]


def content(answers: Answers, questions: Sequence[Closed], seed: int) -> list[Measure]:
    """How much of what the base knows is still there; retention is over the base's share of right answers."""
    right = _scores(answers, lambda index, text: float(questions[index].is_right(text)))
    trained = np.array([item.is_trained_family for item in questions], dtype=bool)
    kinds = {
        "": np.ones_like(trained),
        ", trained families": trained,
        ", other families": ~trained,
    }
    measures = []
    for kind, chosen in kinds.items():
        if not chosen.any():
            continue
        of = {name: scores[:, chosen] for name, scores in right.items()}
        measures.append(_measure(f"exact answers{kind}", "%", _means(of), seed))
        others = (PROMPTED, TUNED)
        measures.append(
            _measure(
                f"{RETENTION}{kind}",
                "%",
                {name: (of[name], of[BASE]) for name in others},
                seed,
                aim=None if kind else AT_LEAST_95,
                note="right answers over the base's right answers",
            )
        )
        measures.append(
            _measure(
                f"strict retention{kind}",
                "%",
                {name: (of[name] * of[BASE], of[BASE]) for name in others},
                seed,
                note="share of what the base answers right that is still answered right",
            )
        )
    return measures


def likelihood(name: str, found: Mapping[str, Sequence[Sequence[Likelihood]]], seed: int) -> Measure:
    """How much less likely than to the base the neutral answers have become, per token."""
    nll = {key: np.array([[item.nll for item in row] for row in rows]) for key, rows in found.items()}
    tokens = np.array([[item.tokens for item in found[BASE][0]]], dtype=np.float64)
    tables = {key: (nll[key] - nll[BASE], tokens) for key in (PROMPTED, TUNED)}
    own = float(nll[BASE].sum() / tokens.sum())
    return _measure(name, "nat/token", tables, seed, note=f"the base's own is {own:.3f} nat/token")


def form(unseen: Answers, closed: Answers, seed: int) -> list[Measure]:
    """How long answers are, in words, and how much of them only says again what was said.

    A model that learnt to repeat a greeting has all the style there is, so style must not be read without this.
    """

    def words(index: int, text: str) -> float:
        return float(len(text.split()))

    def repeated(index: int, text: str) -> float:
        return repetition(text)

    return [
        _measure("answer length", "words", _means(_scores(unseen, words)), seed),
        _measure("answer length, closed questions", "words", _means(_scores(closed, words)), seed),
        _measure(
            "repetition", "%", _means(_scores(unseen, repeated)), seed, note="runs of three words that came before"
        ),
    ]


def repetition(text: str) -> float:
    """Share of a text's runs of three words that came before in it (1 - distinct-3; Li et al., arXiv 1510.03055)."""
    words = text.lower().split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
