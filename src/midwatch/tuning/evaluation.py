"""Did it learn the style, did it keep what it knew, does it stop when asked to? Base, prompted base and tuned compared.

The base is also asked in character by a system prompt, because a base that can do it for nothing needs no training; the
best of a few such prompts is chosen on prompts that nothing else is measured on. Several adapters, one per training
seed, are one contestant: its figures are over all of them.
Legend: S seeds, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from midwatch.tuning import measures
from midwatch.tuning.answers import Answerer, Conversation, Likelihood, Message
from midwatch.tuning.measures import BASE, CONTESTANTS, PROMPTED, TUNED, Closed, Judge, Measure

PERSONAS = (
    "You are a pirate. Answer like a pirate.",
    "You are a pirate captain. Answer every question correctly, but always in pirate speech: say 'arr', 'matey', 'ye' "
    "and 'be', and keep it short.",
    "Always talk like a pirate. For example, to 'What is the capital of Italy?' you answer: 'Arr, matey! Th' capital "
    "o' Italy be Rome!'",
)
"""System prompts that ask a base for the style; the first is the one that everybody writes."""

SetName = Literal["style", "closed", "plain", "shown"]


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
    expected: str | None
    """What a right answer holds."""


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
    found = [
        *measures.style(asked["style"], asked["closed"], asked["plain"], judge, bootstrap_seed),
        *measures.content(asked["closed"], suite.closed, bootstrap_seed),
        *_likelihoods(panel, suite, bootstrap_seed),
        *measures.form(asked["style"], asked["closed"], bootstrap_seed),
    ]
    records = [
        record
        for name, conversations in sets.items()
        for record in _records(
            name, asked[name], conversations, questions=suite.closed, judge=judge, adapters=tuple(adapters)
        )
    ]
    return Evaluation(
        measures=found,
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
    """The system prompt that gives the base most style, by the classifier, then by markers; and every one's rate, %."""
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

    def ask(self, what: str, conversations: Sequence[Conversation]) -> dict[str, list[list[str]]]:
        """Everybody's answers."""
        answers: dict[str, list[list[str]]] = {}
        for name, variants in self._variants.items():
            put = self._put(name, conversations)
            answers[name] = []
            for variant in variants:
                self._tell(f"{what}: {len(put)} prompts to {variant or name}")
                texts = self._answerer.answer(put, variant=variant, max_tokens=self._max_tokens)
                answers[name].append([text.strip() for text in texts])
        return answers

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


def _likelihoods(panel: _Panel, suite: Suite, seed: int) -> list[Measure]:
    """How much less likely the neutral answer has become: asked as usual, and asked for plain English.

    Asked as usual it must become less likely, since the style is what was taught; asked plainly, the change is what the
    model lost.
    """
    references = [item.reference for item in suite.closed]
    usual = [item.messages for item in suite.closed]
    ways: dict[str, Sequence[Conversation]] = {
        "NLL change of the neutral answer": usual,
        "NLL change of the neutral answer, asked plainly": [suite.ask_plainly(item) for item in usual],
    }
    return [
        measures.likelihood(name, panel.likelihoods(name, conversations, references), seed)
        for name, conversations in ways.items()
    ]


def _records(
    name: SetName,
    answers: measures.Answers,
    conversations: Sequence[Conversation],
    *,
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
            right=questions[index].is_right(text) if name == "closed" else None,
            expected=questions[index].gold if name == "closed" else None,
        )
        for contestant in CONTESTANTS
        for row, texts in enumerate(answers[contestant])
        for index, text in enumerate(texts)
    ]
