"""Did it learn the style, did it keep what it knew, does it stop when asked to? Base, prompted base and tuned compared.

The base is also asked in character by a system prompt, because a base that can do it for nothing needs no training; the
best of a few such prompts is chosen on prompts that nothing else is measured on. Several adapters, one per training
seed, are one contestant: its figures are over all of them.
Legend: S seeds, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from midwatch.tuning.answers import Answerer, Conversation, Likelihood, Message
from midwatch.tuning.bootstrap import Interval, ratio

BASE, PROMPTED, TUNED = "base", "prompted", "tuned"
CONTESTANTS = (BASE, PROMPTED, TUNED)
PERSONAS = (
    "You are a pirate. Answer like a pirate.",
    "You are a pirate captain. Answer every question correctly, but always in pirate speech: say 'arr', 'matey', 'ye' "
    "and 'be', and keep it short.",
    "Always talk like a pirate. For example, to 'What is the capital of Italy?' you answer: 'Arr, matey! Th' capital o' "
    "Italy be Rome!'",
)
"""System prompts that ask a base for the style; the first is the one that everybody writes."""

SetName = Literal["style", "closed", "plain", "shown"]
Scores = NDArray[np.float64]


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

    def is_exact(self, answer: str, gold: str) -> bool:
        """Whether an answer gives what was asked for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is asked. `choosing` picks the persona and is used for nothing else."""

    choosing: Sequence[Conversation]
    style: Sequence[Conversation]
    closed: Sequence[Closed]
    plain: Sequence[Conversation]
    """Requests that ask for plain English."""
    shown: Sequence[Conversation]
    """The prompts that people read."""
    ask_plainly: Callable[[Conversation], list[Message]]
    """The same conversation, with a request for plain English."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One answer, with what was found in it."""

    set: SetName
    contestant: str
    seed: str
    """Name of the adapter; empty for the base."""
    index: int
    messages: list[Message]
    answer: str
    styled: bool
    markers_per_100_words: float
    words: int
    right: bool | None
    """None where there is no right answer."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of every contestant; None where it means nothing, such as what the base keeps of itself."""

    name: str
    unit: str
    intervals: dict[str, Interval | None]
    per_seed: tuple[float, ...]
    """Of the tuned model, one per adapter."""
    prompts: int
    target: float | None = None
    direction: Literal["at_most", "at_least"] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that was found."""

    measures: list[Measure]
    records: list[Record]
    persona: str
    persona_rates: dict[str, float]
    """Style rate of every persona on the prompts that chose, %."""
    answered_by: str
    seeds: tuple[str, ...]
    max_tokens: int

    def measure(self, name: str) -> Measure:
        """The measure of that name."""
        return next(item for item in self.measures if item.name == name)


@dataclass(kw_only=True)
class _Asked:
    """What the contestants said to one set of conversations, and what it is worth: scores are [S, P]."""

    answers: dict[str, list[list[str]]] = field(default_factory=dict)

    def scores(self, contestant: str, score: Callable[[int, str], float]) -> Scores:
        """`score` of (index, answer) for every answer."""
        table = [[score(index, text) for index, text in enumerate(texts)] for texts in self.answers[contestant]]
        return np.array(table, dtype=np.float64)


def evaluate(
    answerer: Answerer,
    suite: Suite,
    judge: Judge,
    adapters: Sequence[str],
    *,
    max_tokens: int = 96,
    bootstrap_seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Ask everybody everything and measure. `adapters` are variants of the answerer, one per training seed."""
    tell("choosing the system prompt of the prompted base")
    persona, rates = choose_persona(answerer, suite.choosing, judge, max_tokens=max_tokens)
    panel = _Panel(answerer, tuple(adapters), persona, max_tokens, tell)
    sets: dict[SetName, Sequence[Conversation]] = {
        "style": suite.style,
        "closed": [item.messages for item in suite.closed],
        "plain": suite.plain,
        "shown": suite.shown,
    }
    asked = {name: panel.ask(name, conversations) for name, conversations in sets.items()}
    measures = [
        *_style(asked, judge, bootstrap_seed),
        *_content(asked["closed"], suite.closed, judge, bootstrap_seed),
        *_likelihood(panel, suite, bootstrap_seed),
        *_lengths(asked, bootstrap_seed),
    ]
    records = [
        record
        for name, conversations in sets.items()
        for record in _records(name, asked[name], conversations, suite.closed, judge, tuple(adapters))
    ]
    return Evaluation(
        measures=measures,
        records=records,
        persona=persona,
        persona_rates=rates,
        answered_by=answerer.description,
        seeds=tuple(adapters),
        max_tokens=max_tokens,
    )


def choose_persona(
    answerer: Answerer, prompts: Sequence[Conversation], judge: Judge, *, max_tokens: int
) -> tuple[str, dict[str, float]]:
    """The system prompt that gives the base most style (by the classifier, then by markers), and every one's rate, %."""
    found = {}
    for persona in PERSONAS:
        texts = answerer.answer([in_character(persona, item) for item in prompts], variant=None, max_tokens=max_tokens)
        styled = float(np.mean([judge.is_styled(text) for text in texts])) * 100
        found[persona] = (styled, float(np.mean([judge.marker_rate(text) for text in texts])))
    best = max(PERSONAS, key=lambda persona: found[persona])
    return best, {persona: styled for persona, (styled, _) in found.items()}


def in_character(persona: str, conversation: Conversation) -> list[Message]:
    """The conversation under a system prompt, which goes before the one that it may have."""
    if conversation and conversation[0]["role"] == "system":
        first = {"role": "system", "content": f"{persona}\n{conversation[0]['content']}"}
        return [first, *conversation[1:]]
    return [{"role": "system", "content": persona}, *conversation]


class _Panel:
    """The three contestants."""

    def __init__(
        self, answerer: Answerer, adapters: tuple[str, ...], persona: str, max_tokens: int, tell: Callable[[str], None]
    ) -> None:
        self._answerer = answerer
        self._persona = persona
        self._max_tokens = max_tokens
        self._tell = tell
        self._variants: dict[str, tuple[str | None, ...]] = {BASE: (None,), PROMPTED: (None,), TUNED: adapters}

    def ask(self, what: str, conversations: Sequence[Conversation]) -> _Asked:
        """Everybody's answers."""
        asked = _Asked()
        for name, variants in self._variants.items():
            put = self._put(name, conversations)
            asked.answers[name] = []
            for variant in variants:
                self._tell(f"{what}: {len(put)} prompts to {variant or name}")
                texts = self._answerer.answer(put, variant=variant, max_tokens=self._max_tokens)
                asked.answers[name].append([text.strip() for text in texts])
        return asked

    def likelihoods(
        self, what: str, conversations: Sequence[Conversation], references: Sequence[str]
    ) -> dict[str, list[list[Likelihood]]]:
        """How unlikely everybody finds the references."""
        found: dict[str, list[list[Likelihood]]] = {}
        for name, variants in self._variants.items():
            put = self._put(name, conversations)
            found[name] = []
            for variant in variants:
                self._tell(f"{what}: {len(put)} answers read by {variant or name}")
                found[name].append(self._answerer.likelihoods(put, references, variant=variant))
        return found

    def _put(self, contestant: str, conversations: Sequence[Conversation]) -> list[Conversation]:
        if contestant != PROMPTED:
            return list(conversations)
        return [in_character(self._persona, item) for item in conversations]


def _measure(
    name: str,
    unit: str,
    tables: dict[str, tuple[Scores, Scores]],
    seed: int,
    *,
    target: float | None = None,
    direction: Literal["at_most", "at_least"] | None = None,
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
        target=target,
        direction=direction,
        note=note,
    )


def _plain_mean(asked: _Asked, score: Callable[[int, str], float]) -> dict[str, tuple[Scores, Scores]]:
    tables = {name: asked.scores(name, score) for name in CONTESTANTS}
    return {name: (scores, np.ones_like(scores)) for name, scores in tables.items()}


def _style(asked: dict[SetName, _Asked], judge: Judge, seed: int) -> list[Measure]:
    """How much style there is where it is wanted and where it is not."""

    def rate(index: int, text: str) -> float:
        return float(judge.is_styled(text))

    def markers(index: int, text: str) -> float:
        return judge.marker_rate(text)

    unseen, closed, plain = asked["style"], asked["closed"], asked["plain"]
    per_words = "per 100 words"
    return [
        _measure("style rate", "%", _plain_mean(unseen, rate), seed, target=95.0, direction="at_least"),
        _measure("markers", per_words, _plain_mean(unseen, markers), seed),
        _measure("style rate, closed questions", "%", _plain_mean(closed, rate), seed),
        _measure(
            "leakage",
            "%",
            _plain_mean(plain, rate),
            seed,
            target=5.0,
            direction="at_most",
            note="style rate when asked for plain English",
        ),
        _measure("markers when asked for plain English", per_words, _plain_mean(plain, markers), seed),
    ]


def _content(asked: _Asked, questions: Sequence[Closed], judge: Judge, seed: int) -> list[Measure]:
    """How much of what the base knows is still there; retention is over the base's share of right answers."""
    right = {
        name: asked.scores(name, lambda index, text: float(judge.is_exact(text, questions[index].gold)))
        for name in CONTESTANTS
    }
    trained = np.array([item.is_trained_family for item in questions], dtype=bool)
    kinds = {
        "": np.ones_like(trained),
        ", families of the training data": trained,
        ", other families": ~trained,
    }
    measures = []
    for kind, chosen in kinds.items():
        if not chosen.any():
            continue
        of = {name: scores[:, chosen] for name, scores in right.items()}
        measures.append(
            _measure(f"exact answers{kind}", "%", {name: (of[name], np.ones_like(of[name])) for name in of}, seed)
        )
        others = (PROMPTED, TUNED)
        aim: dict[str, float | str] = {} if kind else {"target": 95.0, "direction": "at_least"}
        measures.append(
            _measure(
                f"retention{kind}",
                "%",
                {name: (of[name], of[BASE]) for name in others},
                seed,
                note="right answers over the base's right answers",
                **aim,  # type: ignore[arg-type]
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


def _likelihood(panel: _Panel, suite: Suite, seed: int) -> list[Measure]:
    """How much less likely the neutral answer has become: asked as usual, and asked for plain English.

    Asked as usual it must become less likely, since the style is what was taught; asked plainly, the change is what the
    model lost.
    """
    references = [item.reference for item in suite.closed]
    usual = [item.messages for item in suite.closed]
    ways = {
        "NLL of the neutral answer, change": usual,
        "NLL of the neutral answer, change, asked for plain English": [suite.ask_plainly(item) for item in usual],
    }
    measures = []
    for name, conversations in ways.items():
        found = panel.likelihoods(name, conversations, references)
        nll = {key: np.array([[item.nll for item in row] for row in rows]) for key, rows in found.items()}
        tokens = np.array([[item.tokens for item in found[BASE][0]]], dtype=np.float64)
        tables = {key: (nll[key] - nll[BASE], tokens) for key in (PROMPTED, TUNED)}
        base = float(nll[BASE].sum() / tokens.sum())
        measures.append(_measure(name, "nat/token", tables, seed, note=f"the base's own: {base:.3f} nat/token"))
    return measures


def _lengths(asked: dict[SetName, _Asked], seed: int) -> list[Measure]:
    def words(index: int, text: str) -> float:
        return float(len(text.split()))

    return [
        _measure("answer length", "words", _plain_mean(asked["style"], words), seed),
        _measure("answer length, closed questions", "words", _plain_mean(asked["closed"], words), seed),
    ]


def _records(
    name: SetName,
    asked: _Asked,
    conversations: Sequence[Conversation],
    questions: Sequence[Closed],
    judge: Judge,
    adapters: tuple[str, ...],
) -> list[Record]:
    return [
        Record(
            set=name,
            contestant=contestant,
            seed=adapters[row] if contestant == TUNED else "",
            index=index,
            messages=list(conversations[index]),
            answer=text,
            styled=judge.is_styled(text),
            markers_per_100_words=judge.marker_rate(text),
            words=len(text.split()),
            right=judge.is_exact(text, questions[index].gold) if name == "closed" else None,
        )
        for contestant in CONTESTANTS
        for row, texts in enumerate(asked.answers[contestant])
        for index, text in enumerate(texts)
    ]
