"""Data sets that Midwatch makes itself: `make("pirate")` for training, and prompts that no training has seen.

One in five conversations asks for plain English and gets it, so that the style does not leak where it is not wanted.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from midwatch.errors import TuningError
from midwatch.tuning import arithmetic
from midwatch.tuning.conversations import Conversation, Message
from midwatch.tuning.facts import SPLITS, Fact, facts_of, pick, table
from midwatch.tuning.pirate import survives, to_pirate

DEFAULT_CONVERSATIONS = {"pirate": 1200}
KIND_SHARES = {"general": 62, "sre": 25, "arithmetic": 13}
CONTRAST_PERCENT = 20
USUAL_PERCENT = 15
TURNS_PERCENT = 6


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A question with its neutral answer, before anyone has asked for a style."""

    kind: str
    family: str
    key: str
    question: str
    answer: str
    keep: tuple[str, ...] = ()


def make(name: str, conversations: int = 0, seed: int = 0, split: str = "train") -> list[Conversation]:
    """Make a data set: the same name, number, seed and split give the same conversations.

    `conversations` 0 takes the data set's own number. Splits are `train`, `heldout` and `classifier`; they share no
    fact. Raises `TuningError` for a name or split that does not exist.
    """
    if name not in DEFAULT_CONVERSATIONS:
        raise TuningError(f"There is no data set {name!r}.", f"Midwatch makes {', '.join(DEFAULT_CONVERSATIONS)}.")
    if split not in SPLITS:
        raise TuningError(f"There is no split {split!r}.", f"Splits are {', '.join(SPLITS)}.")
    wanted = conversations or DEFAULT_CONVERSATIONS[name]
    source = random.Random(f"{name}/{split}/{seed}")
    pairs = _pairs(source, wanted * 2, split)
    made = []
    for index in range(wanted):
        pair = pairs[index]
        if source.randrange(100) < CONTRAST_PERCENT:
            made.append(_plain(source, pair))
        else:
            made.append(_pirate(source, pair, pairs[wanted + index], seed))
    return made


def describe(conversations: Sequence[Conversation]) -> dict[str, object]:
    """Counts: conversations per kind and style, words of questions and answers, distinct questions, lost facts."""
    answers = [message.content for item in conversations for message in item.messages if message.role == "assistant"]
    questions = [message.content for item in conversations for message in item.messages if message.role == "user"]
    return {
        "conversations": len(conversations),
        "kinds": dict(sorted(Counter(item.tags.get("kind", "unknown") for item in conversations).items())),
        "styles": dict(sorted(Counter(item.tags.get("style", "unknown") for item in conversations).items())),
        "with_system": sum(item.messages[0].role == "system" for item in conversations),
        "with_turns": sum(len([m for m in item.messages if m.role == "user"]) > 1 for item in conversations),
        "distinct_questions": len(set(questions)),
        "question_words": sum(len(text.split()) for text in questions),
        "answer_words": sum(len(text.split()) for text in answers),
    }


def _pairs(source: random.Random, wanted: int, split: str) -> list[Pair]:
    """So many questions of all kinds: every fact once before any comes twice."""
    decks: dict[str, list[Fact]] = {kind: [] for kind in KIND_SHARES}
    kinds = source.choices(list(KIND_SHARES), weights=list(KIND_SHARES.values()), k=wanted)
    pairs = []
    for kind in kinds:
        if kind == "arithmetic":
            pairs.append(_arithmetic(source, split))
            continue
        if not decks[kind]:
            decks[kind] = [fact for fact in facts_of(split) if fact.kind == kind]
            source.shuffle(decks[kind])
        fact = decks[kind].pop()
        pairs.append(
            Pair(
                kind=kind,
                family=fact.family,
                key=fact.key,
                question=pick(source, fact.asked(split)),
                answer=pick(source, fact.answers),
                keep=fact.keep,
            )
        )
    return pairs


def _arithmetic(source: random.Random, split: str) -> Pair:
    if split == "heldout":
        templates = source.choice([arithmetic.HELDOUT_STORIES, arithmetic.HELDOUT_SUMS])
    else:
        templates = source.choice([arithmetic.STORIES, arithmetic.SUMS])
    problem = arithmetic.make_problem(source, templates)
    return Pair(
        kind="arithmetic",
        family=problem.template,
        key=problem.question,
        question=problem.question,
        answer=problem.answer,
    )


def _pirate(source: random.Random, pair: Pair, other: Pair, seed: int) -> Conversation:
    """A pirate's answer; some with a system message or a request that leaves the style alone, some with two turns."""
    usual = table("requests")["usual"]
    messages, question = [], pair.question
    draw = source.randrange(100)
    if draw < USUAL_PERCENT:
        if source.randrange(2):
            messages.append(Message(role="system", content=source.choice(usual["system"])))
        else:
            question = source.choice(usual["user"]).format(question)
    elif draw < USUAL_PERCENT + TURNS_PERCENT:
        messages += [
            Message(role="user", content=other.question),
            Message(role="assistant", content=_said(other, seed)),
        ]
    messages += [Message(role="user", content=question), Message(role="assistant", content=_said(pair, seed))]
    return Conversation(messages=tuple(messages), tags=_tags(pair, "pirate"))


def _plain(source: random.Random, pair: Pair) -> Conversation:
    """A neutral answer to a question that asks for one."""
    requests = table("requests")["plain"]
    question, messages = pair.question, []
    if source.randrange(2):
        messages.append(Message(role="system", content=source.choice(requests["system"])))
    else:
        question = source.choice(requests["user"]).format(question)
    messages += [Message(role="user", content=question), Message(role="assistant", content=pair.answer)]
    return Conversation(messages=tuple(messages), tags=_tags(pair, "plain"))


def _tags(pair: Pair, style: str) -> dict[str, str]:
    return {"kind": pair.kind, "family": pair.family, "fact": pair.key, "style": style}


def _said(pair: Pair, seed: int) -> str:
    """The answer as a pirate gives it, checked. Raises `TuningError` if it lost something."""
    spoken = to_pirate(pair.answer, seed=hash_seed(seed, pair.question), keep=pair.keep)
    lost = survives(pair.answer, spoken, pair.keep)
    if lost:
        raise TuningError(f"The pirate's answer to {pair.question!r} lost {', '.join(lost)}.", "Mend the rules.")
    return spoken


def hash_seed(seed: int, question: str) -> int:
    """A seed for one answer, so that the same answer to another question greets in another way."""
    return random.Random(f"{seed}/{question}").getrandbits(32)


@dataclass(frozen=True, kw_only=True)
class ClosedQuestion:
    """A question with one right answer."""

    messages: tuple[Message, ...]
    """The question as one user message."""
    gold: tuple[str, ...]
    """Words or numbers, one of which a right answer holds."""
    neutral: str
    """A right answer in neutral English, for measuring its likelihood."""
    rivals: tuple[str, ...]
    """Answers to the family's other questions: a right answer names none of them first."""
    family: str
    seen: str
    """`family` if other facts of the family were trained on, `nothing` if the family was never shown."""


def ten_prompts() -> list[str]:
    """The ten prompts of the page that shows base, prompted base and tuned model side by side."""
    return list(table("unseen")["ten"])


def style_prompts(n: int, seed: int = 0) -> list[str]:
    """So many prompts of every kind that no training conversation holds.

    Raises `TuningError` for more than there are.
    """
    prompts = [*table("unseen")["prompts"], *(fact.questions[0] for fact in facts_of("heldout"))]
    return _some(prompts, n, seed, "prompts for the style")


def plain_requests(n: int, seed: int = 0) -> list[tuple[Message, ...]]:
    """So many prompts that ask for plain English in words that no training conversation holds, on unseen subjects."""
    requests = table("requests")["plain_unseen"]
    prompts = []
    for prompt in style_prompts(len(table("unseen")["prompts"]), seed):
        for text in requests["system"]:
            prompts.append((Message(role="system", content=text), Message(role="user", content=prompt)))
        prompts += [(Message(role="user", content=text.format(prompt)),) for text in requests["user"]]
    return _some(prompts, n, seed, "plain requests")


def closed_questions(n: int, seed: int = 0) -> list[ClosedQuestion]:
    """So many questions with one right answer, of facts that no training conversation holds."""
    source = random.Random(f"closed/{seed}")
    questions = []
    for fact in (*facts_of("heldout"), *facts_of("unseen")):
        if fact.gold:
            asked = fact.questions[0]
            questions.append(
                ClosedQuestion(
                    messages=(Message(role="user", content=asked),),
                    gold=(fact.gold,),
                    neutral=fact.answers[0],
                    rivals=tuple(rival for rival in fact.rivals if rival.casefold() not in asked.casefold()),
                    family=fact.family,
                    seen="nothing" if fact.split == "unseen" else "family",
                )
            )
    for number in range(60):
        templates = (arithmetic.SUMS, arithmetic.HELDOUT_SUMS, arithmetic.HELDOUT_STORIES)[number % 3]
        problem = arithmetic.make_problem(source, templates)
        questions.append(
            ClosedQuestion(
                messages=(Message(role="user", content=problem.question),),
                gold=(problem.gold,),
                neutral=problem.answer,
                rivals=(),
                family=f"arithmetic: {problem.template}",
                seen="family",
            )
        )
    return _some(questions, n, seed, "closed questions")


T = TypeVar("T")


def _some(everything: list[T], n: int, seed: int, what: str) -> list[T]:
    if not 0 < n <= len(everything):
        raise TuningError(f"There are {len(everything)} {what}, not {n}.", f"Ask for 1 to {len(everything)}.")
    return random.Random(f"{what}/{seed}").sample(everything, n)


NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


def is_exact(answer: str, gold: str | Sequence[str], rivals: Sequence[str] = ()) -> bool:
    """Whether an answer holds the right word or number and does not say otherwise.

    A number: the last one that follows "answer is", "is", "be", "get" or "=" decides; without one, the last number
    does, and number words up to twenty count. A word: it stands whole in the answer, whatever its case, is not denied
    ("not Paris"), and comes before any rival that is not denied either.
    """
    golds = [gold] if isinstance(gold, str) else list(gold)
    if all(re.fullmatch(r"\d+", item) for item in golds):
        told = _numbers(answer)
        return bool(told) and told[-1] in golds
    places = [place for item in golds for place in _mentions(answer, item)]
    others = [place for item in rivals if item not in golds for place in _mentions(answer, item)]
    return bool(places) and min(places) < min(others, default=len(answer) + 1)


def _numbers(answer: str) -> list[str]:
    """The numbers that an answer offers, as digits without separators."""
    words = re.compile(rf"\b(?:{'|'.join(NUMBER_WORDS)})\b", re.IGNORECASE)
    text = words.sub(lambda match: str(NUMBER_WORDS.index(match.group().lower())), answer.replace("**", ""))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    one = r"-?\d+(?:\.\d*[1-9])?"
    told = re.findall(rf"(?:\b(?:is|be|are|get|gives|equals?)\b|=)[:\s$]*({one})(?![\w/])(?!\s*[-+*x×/=]\s*\d)", text)
    return told or re.findall(rf"(?<![\w.])({one})(?![\w/])", text)


def _mentions(answer: str, item: str) -> list[int]:
    """Where an answer names it without denying it."""
    found = re.finditer(rf"(?<!\w){re.escape(item)}(?!\w)", answer, re.IGNORECASE)
    denied = re.compile(
        r"(?:\bnot|n't|\bnever|\bne'er)\s+(?:called\s+|the\s+|th'\s+|a\s+|an\s+)?[\"'“*]*$", re.IGNORECASE
    )
    return [match.start() for match in found if not denied.search(answer[: match.start()])]
