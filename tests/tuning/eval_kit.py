"""An answerer that says what a table says, a judge that counts one word, and a small suite of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from midwatch.tuning.answers import Conversation, Likelihood, Message
from midwatch.tuning.evaluation import Suite

PLAINLY = "Answer in plain English."


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@dataclass(frozen=True, kw_only=True)
class Question:
    messages: list[Message]
    gold: str
    reference: str
    is_trained_family: bool

    def is_right(self, answer: str) -> bool:
        return self.gold in answer.split()


class WordJudge:
    """Every `arr` is a marker; one makes an answer styled."""

    def is_styled(self, text: str) -> bool:
        return "arr" in text.split()

    def marker_rate(self, text: str) -> float:
        words = text.split()
        return 100 * words.count("arr") / len(words) if words else 0.0

    def spans(self, text: str) -> list[tuple[int, int]]:
        found, at = [], text.find("arr")
        while at >= 0:
            found.append((at, at + 3))
            at = text.find("arr", at + 3)
        return found


Say = Callable[[str | None, str, str], str]
"""What a variant says to (system prompt, last user message)."""


class TableAnswerer:
    """Answers by a function of variant, system prompt and question; remembers what was asked of it."""

    description = "a table"

    def __init__(self, say: Say, nll: Callable[[str | None, Conversation, str], float] = lambda *_: 1.0) -> None:
        self._say = say
        self._nll = nll
        self.asked: list[tuple[str | None, list[Message]]] = []

    def answer(self, conversations: Sequence[Conversation], *, variant: str | None, max_tokens: int) -> list[str]:
        self.asked += [(variant, list(item)) for item in conversations]
        return [self._say(variant, _system(item), item[-1]["content"]) for item in conversations]

    def likelihoods(
        self, conversations: Sequence[Conversation], answers: Sequence[str], *, variant: str | None
    ) -> list[Likelihood]:
        return [
            Likelihood(nll=self._nll(variant, conversation, answer), tokens=len(answer.split()))
            for conversation, answer in zip(conversations, answers, strict=True)
        ]


def _system(conversation: Conversation) -> str:
    return conversation[0]["content"] if conversation[0]["role"] == "system" else ""


def ask_plainly(conversation: Conversation) -> list[Message]:
    return [{"role": "system", "content": PLAINLY}, *conversation]


def small_suite(questions: int = 8) -> Suite:
    """`q3` has the gold answer `g3`; even questions are of trained families."""
    return Suite(
        choosing=[user(f"choose {index}") for index in range(4)],
        style=[user(f"say {index}") for index in range(6)],
        closed=[
            Question(
                messages=user(f"q{index}"),
                gold=f"g{index}",
                reference=f"It is g{index} .",
                is_trained_family=index % 2 == 0,
            )
            for index in range(questions)
        ],
        plain=[ask_plainly(user(f"plain {index}")) for index in range(5)],
        shown=[user(f"show <{index}>") for index in range(2)],
        ask_plainly=ask_plainly,
    )
