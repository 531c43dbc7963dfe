"""What the answers are about: tables that we wrote by hand, opened as facts that can be asked in several ways.

A fact belongs to one split for good, by a hash of its own name, so that no question of another split gives it away.
"""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

KINDS = ("sre", "general")
SPLITS = ("train", "heldout", "classifier")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing to know, the ways to ask for it, and the ways to tell it."""

    key: str
    """Name, unique among all facts."""
    kind: str
    """`sre`, `general`."""
    family: str
    """Facts that are asked in the same words."""
    split: str
    """`train`, `heldout` or `classifier`; `unseen` for a family that is in none of them."""
    questions: tuple[str, ...]
    """Ways to ask. The last of them is never trained on where there are at least three."""
    answers: tuple[str, ...]
    """Ways to answer, in neutral English."""
    gold: str = ""
    """The word or number that a right answer holds, alternatives apart by a bar; empty for an open question."""
    rivals: tuple[str, ...] = ()
    """What answers the family's other questions: a wrong answer is often one of them."""
    keep: tuple[str, ...] = ()
    """Words that a change of style must leave alone."""

    def asked(self, split: str) -> tuple[str, ...]:
        """Ways to ask that are open to a split: the training never sees the last one."""
        return self.questions[:-1] if len(self.questions) >= 3 and split == "train" else self.questions


def split_of(key: str, heldout_percent: int = 14, classifier_percent: int = 16) -> str:
    """The split that a fact of this name is in."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    if draw < heldout_percent:
        return "heldout"
    return "classifier" if draw < heldout_percent + classifier_percent else "train"


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the tables, in the tables' order."""
    return tuple(
        fact for kind in ("sre", "general") for family in table(kind)["family"] for fact in _open(kind, family)
    )


@cache
def table(name: str) -> dict[str, Any]:
    """One of the tables that come with Midwatch."""
    text = (resources.files("midwatch.tuning") / "tables" / f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def facts_of(split: str) -> list[Fact]:
    """The facts of one split; `unseen` gives the families that are in none."""
    return [fact for fact in all_facts() if fact.split == split]


def pick(random_source: random.Random, options: tuple[str, ...]) -> str:
    """One of them."""
    return options[random_source.randrange(len(options))]


def _open(kind: str, family: dict[str, Any]) -> Iterator[Fact]:
    name = family["name"]
    unseen = family.get("use") == "unseen"
    for line in family.get("pairs", "").strip().splitlines():
        questions, _, answer = line.partition(" => ")
        asked = tuple(question.strip() for question in questions.split(" | "))
        key = f"{name}: {asked[0]}"
        yield Fact(
            key=key,
            kind=kind,
            family=name,
            split="unseen" if unseen else split_of(key),
            questions=asked,
            answers=(answer.replace("\\n", "\n"),),
        )
    column = family.get("gold")
    golds = [row[column] for row in family.get("rows", ())] if column is not None else []
    for row in family.get("rows", ()):
        cells = [cell.partition("|")[0] for cell in row]
        key = f"{name}: {row[0]}"
        gold = row[column] if column is not None else ""
        asked = tuple(_capital(question.format(*cells)) for question in family["ask"])
        yield Fact(
            key=key,
            kind=kind,
            family=name,
            split="unseen" if unseen else split_of(key),
            questions=asked,
            answers=tuple(_capital(answer.format(*cells)) for answer in family["say"]),
            gold=gold,
            rivals=tuple(sorted({other for other in golds if not set(other.split("|")) & set(gold.split("|"))})),
            keep=(cells[column], cells[0]) if column is not None else (),
        )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
