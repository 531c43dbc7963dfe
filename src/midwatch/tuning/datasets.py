"""Data sets that Midwatch makes itself: `make("pirate")` for training, and prompts that no training has seen.

Two conversations in five ask for plain English and get it, so that the style does not leak where it is not wanted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midwatch.errors import TuningError
from midwatch.tuning import arithmetic
from midwatch.tuning.conversations import Conversation, Message
from midwatch.tuning.facts import SPLITS, Fact, facts_of, pick, split_of, table
from midwatch.tuning.own_words import AnswerAll, in_own_words
from midwatch.tuning.pirate import to_pirate
from midwatch.tuning.style import marker_rate

DEFAULT_CONVERSATIONS = {"pirate": 1200}
KIND_SHARES = {"general": 62, "sre": 25, "arithmetic": 13}
CONTRAST_PERCENT = 40
WRITTEN_PERCENT = 30
ASKED_PERCENT = 20
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
    gold: str = ""
    rivals: tuple[str, ...] = ()


def names() -> list[str]:
    """The data sets that Midwatch makes."""
    return list(DEFAULT_CONVERSATIONS)


def make(
    name: str,
    conversations: int = 0,
    seed: int = 0,
    split: str = "train",
    *,
    answer_all: AnswerAll | None = None,
) -> list[Conversation]:
    """Make a data set: the same name, number, seed, split and answers give the same conversations.

    `conversations` 0 takes the data set's own number. Splits are `train`, `heldout` and `classifier`; they share no
    fact. `answer_all` asks the base: its own answers stand in for the tables' (`own_words.py`). Raises `TuningError`
    for a name or split that does not exist.
    """
    if name not in DEFAULT_CONVERSATIONS:
        raise TuningError(f"There is no data set {name!r}.", f"Midwatch makes {', '.join(names())}.")
    if split not in SPLITS:
        raise TuningError(f"There is no split {split!r}.", f"Splits are {', '.join(SPLITS)}.")
    wanted = conversations or DEFAULT_CONVERSATIONS[name]
    source = random.Random(f"{name}/{split}/{seed}")
    pairs = (
        _pairs(source, wanted * 2, split) if answer_all is None else _own_pairs(source, wanted * 2, split, answer_all)
    )
    made = []
    for index in range(wanted):
        pair = pairs[index]
        if source.randrange(100) < CONTRAST_PERCENT:
            made.append(_plain(source, pair, pairs[wanted + index]))
        else:
            made.append(_pirate(source, pair, pairs[wanted + index]))
    return made


def describe(conversations: Sequence[Conversation]) -> dict[str, object]:
    """Counts: conversations per kind and style, words of questions and answers, distinct questions, markers per style.

    That nothing of a neutral answer was lost is checked for every pair when it is made, and needs no count.
    """
    rates: dict[str, list[float]] = {}
    for item in conversations:
        rates.setdefault(item.tags.get("style", "unknown"), []).append(marker_rate(item.answer))
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
        "markers_per_100_words": {style: sum(found) / len(found) for style, found in sorted(rates.items())},
    }


def _own_pairs(source: random.Random, wanted: int, split: str, answer_all: AnswerAll) -> list[Pair]:
    """So many pairs in the base's words, most of them about what only the base is asked about."""
    asked = list(_asked(split))
    source.shuffle(asked)
    pairs = in_own_words([*_pairs(source, wanted, split), *asked], answer_all)
    known, free = pairs[:wanted], [pair for pair in pairs[wanted:] if pair.answer]
    return [free.pop() if free and source.randrange(100) < ASKED_PERCENT else known.pop() for _ in range(wanted)]


def _asked(split: str) -> Iterator[Pair]:
    """Questions that have no answer in the tables."""
    for group in table("asked")["group"]:
        for ask in group["ask"]:
            for word in group["words"]:
                question = ask.format(word)
                if split_of(question) == split:
                    yield Pair(kind="general", family="asked", key=question, question=question, answer="")


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
                gold=fact.gold,
                rivals=fact.rivals,
            )
        )
    return pairs


def _arithmetic(source: random.Random, split: str) -> Pair:
    if split == "heldout":
        templates = source.choice([arithmetic.HELDOUT_STORIES, arithmetic.HELDOUT_SUMS])
    else:
        templates = source.choice([arithmetic.STORIES, arithmetic.SUMS])
    problem = arithmetic.make_problem(source, templates)
    while split != "heldout" and split_of(problem.question) != split:
        problem = arithmetic.make_problem(source, templates)
    return Pair(
        kind="arithmetic",
        family=problem.template,
        key=problem.question,
        question=problem.question,
        answer=problem.answer,
        gold=problem.gold,
    )


def _pirate(source: random.Random, pair: Pair, other: Pair) -> Conversation:
    """A pirate's answer; some with a system message or a request that leaves the style alone, some with two turns."""
    usual = table("requests")["usual"]
    question = pair.question
    messages: list[Message] = []
    draw = source.randrange(100)
    if draw < USUAL_PERCENT:
        if source.randrange(2):
            messages.append(Message(role="system", content=source.choice(usual["system"])))
        else:
            question = source.choice(usual["user"]).format(question)
    elif draw < USUAL_PERCENT + TURNS_PERCENT:
        messages += [
            Message(role="user", content=other.question),
            Message(role="assistant", content=_said(source, other)),
        ]
    messages += [Message(role="user", content=question), Message(role="assistant", content=_said(source, pair))]
    return Conversation(messages=tuple(messages), tags=_tags(pair, "pirate"))


def _plain(source: random.Random, pair: Pair, other: Pair) -> Conversation:
    """A neutral answer to a question that asks for one, now and then after a pirate's answer to another question."""
    question = pair.question
    messages: list[Message] = []
    if source.randrange(100) < TURNS_PERCENT:
        messages += _turn(other.question, _said(source, other))
    if source.randrange(2) and not messages:
        messages.append(Message(role="system", content=_request(source, "system", "")))
    else:
        question = _request(source, "user", question)
    messages += _turn(question, pair.answer)
    return Conversation(messages=tuple(messages), tags=_tags(pair, "plain"))


def _request(source: random.Random, role: str, question: str) -> str:
    """A request for plain English, one of many thousands; never one that an evaluation asks."""
    if source.randrange(100) < WRITTEN_PERCENT:
        return str(source.choice(table("requests")["plain"][role]).format(question))
    unseen = {text.replace("{0}", "").strip() for text in _unseen_requests()}
    while (request := _made_request(source, role)) in unseen:
        pass
    place = source.choice(table("request_parts")["place"]) if role == "user" else "{1}"
    return str(place.format(question, request))


def _made_request(source: random.Random, role: str) -> str:
    """What is wanted, what is not, or both, put together from parts."""
    parts = table("request_parts")

    def some(*names: str) -> str:
        return " ".join(source.choice(parts[name]) for name in names) + "."

    wanted = some("wanted", "tone")
    if role == "system" and source.randrange(3) == 0:
        wanted = f"You are {some('role')} {some('habit', 'tone')}"
    unwanted = some("avoid", "avoided") if source.randrange(3) == 0 else some("unwanted", "manner")
    request = source.choice([wanted, unwanted, f"{wanted} {unwanted}", f"{unwanted} {wanted}"])
    if source.randrange(4) == 0 and not request.startswith(("I ", "You ", "Please", "There", "Your ")):
        request = f"Please {request[0].lower()}{request[1:]}"
    return request


def _unseen_requests() -> list[str]:
    unseen = table("requests")["plain_unseen"]
    return [*unseen["system"], *unseen["user"]]


def _turn(question: str, answer: str) -> tuple[Message, Message]:
    return Message(role="user", content=question), Message(role="assistant", content=answer)


def _tags(pair: Pair, style: str) -> dict[str, str]:
    return {"kind": pair.kind, "family": pair.family, "fact": pair.key, "style": style}


def _said(source: random.Random, pair: Pair) -> str:
    """The answer as a pirate gives it, with another greeting each time. Raises `TuningError` if it lost something."""
    return to_pirate(pair.answer, seed=source.getrandbits(32), keep=pair.keep)
