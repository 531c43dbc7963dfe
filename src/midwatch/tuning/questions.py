"""What a model is asked after training: prompts, requests for plain English and closed questions, none trained on.

The prompts are written by hand or ask for facts of the split `heldout`; the closed questions come from held-out facts
of trained families and from families that the training never shows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from midwatch.errors import TuningError
from midwatch.tuning import arithmetic
from midwatch.tuning.facts import Fact, facts_of, split_of, table

Chat = list[dict[str, str]]
"""Messages as a chat template takes them: {"role", "content"}."""


@dataclass(frozen=True, kw_only=True)
class ClosedQuestion:
    """A question with one right answer."""

    messages: Chat
    """The question as one user message."""
    gold: str
    """The word or number that a right answer holds; alternatives are apart by a bar."""
    reference: str
    """A right answer in neutral English, whole, for measuring its likelihood."""
    family: str
    """Questions of one kind."""
    is_trained_family: bool
    """Whether other facts of the family were trained on. If not, the training never showed its like."""
    rivals: tuple[str, ...] = ()
    """Answers to the family's other questions: a right answer names none of them first."""

    def is_right(self, answer: str) -> bool:
        """Whether an answer is right, by `is_exact`."""
        return is_exact(answer, self.gold, self.rivals)


def ten_prompts() -> list[Chat]:
    """The ten prompts of the page that shows base, prompted base and tuned model side by side."""
    return [_asked(prompt) for prompt in table("unseen")["ten"]]


def style_prompts(n: int, seed: int = 0) -> list[Chat]:
    """So many prompts of every kind that no training conversation holds.

    Raises `TuningError` for more than there are.
    """
    written = [_asked(prompt) for prompt in table("unseen")["prompts"]]
    return _some(written + [_asked(fact.questions[0]) for fact in facts_of("heldout")], n, seed, "prompts")


def plain_requests(n: int, seed: int = 0) -> list[Chat]:
    """So many prompts on unseen subjects that ask for plain English in words that no training conversation holds.

    Raises `TuningError` for more than there are.
    """
    return [ask_plainly(chat, seed) for chat in style_prompts(n, seed)]


def ask_plainly(chat: Sequence[dict[str, str]], seed: int = 0) -> Chat:
    """The same chat with a request for plain English, in words that the training never used.

    The chat's last message and the seed choose the words; half of the requests are a system message.
    """
    requests = table("requests")["plain_unseen"]
    *before, last = chat
    source = random.Random(f"plain/{seed}/{last['content']}")
    if source.randrange(2) and all(message["role"] != "system" for message in before):
        return [{"role": "system", "content": source.choice(requests["system"])}, *before, last]
    return [*before, {**last, "content": source.choice(requests["user"]).format(last["content"])}]


def closed_questions(n: int, seed: int = 0) -> list[ClosedQuestion]:
    """So many questions with one right answer, of facts that no training conversation holds.

    Raises `TuningError` for more than there are.
    """
    questions = [_closed(fact) for fact in (*facts_of("heldout"), *facts_of("unseen")) if fact.gold]
    source = random.Random(f"closed/{seed}")
    easy = {name: template for name, template in arithmetic.SUMS.items() if template[2] != "take"}
    sums: set[str] = set()
    for _ in range(SUMS):
        problem = arithmetic.make_problem(source, easy)
        while problem.question in sums or split_of(problem.question) != "heldout":
            problem = arithmetic.make_problem(source, easy)
        sums.add(problem.question)
        questions.append(
            ClosedQuestion(
                messages=_asked(problem.question),
                gold=problem.gold,
                reference=problem.answer,
                family=f"arithmetic: {problem.template}",
                is_trained_family=True,
            )
        )
    return _some(questions, n, seed, "closed questions")


def _closed(fact: Fact) -> ClosedQuestion:
    asked = fact.questions[0]
    return ClosedQuestion(
        messages=_asked(asked),
        gold=fact.gold,
        reference=fact.answers[0],
        family=fact.family,
        is_trained_family=fact.split != "unseen",
        rivals=tuple(rival for rival in fact.rivals if not _mentions(asked, rival)),
    )


def _asked(question: str) -> Chat:
    return [{"role": "user", "content": question}]


SUMS = 30
T = TypeVar("T")


def _some(everything: list[T], n: int, seed: int, what: str) -> list[T]:
    if not 0 < n <= len(everything):
        raise TuningError(f"There are {len(everything)} {what}, not {n}.", f"Ask for 1 to {len(everything)}.")
    return random.Random(f"{what}/{seed}").sample(everything, n)


NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip


def is_exact(answer: str, gold: str, rivals: Sequence[str] = ()) -> bool:
    """Whether an answer holds the right word or number and does not say otherwise.

    A number: the last one that follows "is", "be", "are", "get", "equals", "port" or "=" decides; without one, the last
    number does, and number words up to twenty count. A word: it stands whole in the answer, whatever its case, is not
    denied ("not Paris"), and comes before any rival that is not denied either. Spelling is not content: th', o', an'
    and a word in -in' count as the, of, and and -ing.
    """
    answer = _spelled_out(answer)
    golds = gold.split("|")
    if gold.isdecimal():
        return _numbers(answer)[-1:] == golds
    places = [place for item in golds for place in _mentions(answer, item)]
    wrong = {item for rival in rivals for item in rival.split("|")} - set(golds)
    others = [place for item in wrong for place in _mentions(answer, item)]
    return bool(places) and min(places) < min(others, default=len(answer) + 1)


def _spelled_out(text: str) -> str:
    for short, long in ((r"\bth'", "the"), (r"\bo'", "of"), (r"\ban'", "and"), (r"(?<=\w\w)in'", "ing")):
        text = re.sub(rf"{short}(?!\w)", long, text.replace("’", "'"), flags=re.IGNORECASE)
    return text


def _numbers(answer: str) -> list[str]:
    """The numbers that an answer offers, as digits without separators."""
    words = re.compile(rf"\b(?:{'|'.join(NUMBER_WORDS)})\b", re.IGNORECASE)
    text = words.sub(lambda match: str(NUMBER_WORDS.index(match.group().lower())), answer.replace("**", ""))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    one = r"-?\d+(?:\.\d*[1-9])?"
    told = re.findall(
        rf"(?:\b(?:is|be|are|get|gives|equals?|port)\b|=)[:\s$]*({one})(?![\w/])(?!\s*[-+*x×/=]\s*\d)", text
    )
    return told or re.findall(rf"(?<![\w.])({one})(?![\w/])", text)


def _mentions(answer: str, item: str) -> list[int]:
    """Where an answer names it without denying it."""
    found = re.finditer(rf"(?<!\w){re.escape(item)}(?!\w)", answer, re.IGNORECASE)
    denied = re.compile(r"(?:\bnot|n't|\bnever|\bne'er)(?: called)?(?: the| th'| an?)? [\"'“*]*$", re.IGNORECASE)
    return [match.start() for match in found if not denied.search(answer[: match.start()])]
