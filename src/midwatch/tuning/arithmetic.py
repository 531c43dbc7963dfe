"""Word problems in one and two steps and bare sums, made from templates with small numbers.

Every problem carries its worked answer, which ends in "The answer is N.", and N itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Ivy", "Jack", "Karen", "Leo", "Mia", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Yusuf",
)  # fmt: skip
THINGS = (
    "apples", "books", "coins", "marbles", "pencils", "stickers", "cookies", "tickets", "cards", "stamps", "shells",
    "flowers", "buttons", "balloons", "oranges",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with one number for an answer."""

    template: str
    """Name of the template it was made from."""
    question: str
    answer: str
    """Worked out in a sentence or two, in neutral English."""
    gold: str
    """The number."""


STORIES = {
    "gets more": (
        "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
        "{n} has {a} + {b} = {r} {t}.",
        "add",
    ),
    "gives away": (
        "{n} has {c} {t} and gives {b} to {m}. How many {t} are left?",
        "{n} keeps {c} - {b} = {r} {t}.",
        "take",
    ),
    "rows": (
        "There are {d} boxes with {e} {t} in each. How many {t} are there in all?",
        "There are {d} x {e} = {r} {t}.",
        "times",
    ),
    "price": (
        "One ticket costs {e} dollars. How much do {d} tickets cost?",
        "{d} tickets cost {d} x {e} = {r} dollars.",
        "times",
    ),
    "together": (
        "{n} finds {a} {t} and {m} finds {b}. How many {t} do they have together?",
        "Together they have {a} + {b} = {r} {t}.",
        "add",
    ),
    "pods": (
        "A service runs {a} pods and scales up by {b}. How many pods are running now?",
        "There are {a} + {b} = {r} pods now.",
        "add",
    ),
    "alerts": (
        "There were {c} alerts in the night, and {b} were false. How many were real?",
        "There were {c} - {b} = {r} real alerts.",
        "take",
    ),
    "shares": (
        "{n} shares {p} {t} equally among {d} friends. How many {t} does each friend get?",
        "Each one gets {p} / {d} = {e} {t}.",
        "share",
    ),
    "two steps": (
        "{n} buys {d} bags with {e} {t} each and then eats or loses {b}. How many {t} are left?",
        "First {d} x {e} = {p} {t}. Then {p} - {b} = {r}.",
        "times then take",
    ),
    "saves": (
        "{n} has {a} dollars, earns {b} dollars and spends {f} dollars. How many dollars are left?",
        "First {a} + {b} = {s} dollars. Then {s} - {f} = {r}.",
        "add then take",
    ),
    "nodes": (
        "A cluster has {d} nodes with {e} pods each. {b} pods are stopped. How many pods still run?",
        "At first {d} x {e} = {p} pods run. Then {p} - {b} = {r}.",
        "times then take",
    ),
}
"""Template: question, working, how the result comes about."""

HELDOUT_STORIES = {
    "bus": (
        "{a} people are on a bus, and {b} more get on. How many people are on the bus?",
        "There are {a} + {b} = {r} on the bus.",
        "add",
    ),
    "garden": (
        "A garden has {d} rows of {e} trees. How many trees are in the garden?",
        "There are {d} x {e} = {r} trees.",
        "times",
    ),
    "requests": (
        "A server had {c} open connections, and {b} were closed. How many are still open?",
        "{c} - {b} = {r} are still open.",
        "take",
    ),
}

SUMS = {
    "plus": ("What is {a} + {b}?", "{a} + {b} = {r}.", "add"),
    "plus in words": ("What is {a} plus {b}?", "{a} plus {b} is {r}.", "add"),
    "minus": ("What is {c} - {b}?", "{c} - {b} = {r}.", "take"),
    "minus in words": ("What is {c} minus {b}?", "{c} minus {b} is {r}.", "take"),
    "times": ("What is {d} x {e}?", "{d} x {e} = {r}.", "times"),
    "sum of": ("Add {a} and {b}.", "The sum of {a} and {b} is {r}.", "add"),
}
HELDOUT_SUMS = {
    "calculate": ("Calculate {a} + {b}.", "{a} + {b} = {r}.", "add"),
    "how much": ("How much is {c} minus {b}?", "{c} minus {b} is {r}.", "take"),
}


def make_problem(random_source: random.Random, templates: dict[str, tuple[str, str, str]]) -> Problem:
    """A problem from one of the templates, with numbers that come out whole and not below zero."""
    name = random_source.choice(sorted(templates))
    question, working, how = templates[name]
    low, high = random_source.randint(2, 12), random_source.randint(2, 20)
    groups, each = random_source.randint(2, 6), random_source.randint(2, 9)
    product = groups * each
    if how == "times then take":
        low = random_source.randint(1, product - 1)
    spent = random_source.randint(1, high + low - 1)
    results = {
        "add": high + low,
        "take": high,
        "times": product,
        "share": each,
        "times then take": product - low,
        "add then take": high + low - spent,
    }
    first, second = random_source.sample(NAMES, 2)
    values = {
        "a": high, "b": low, "c": high + low, "d": groups, "e": each, "f": spent, "p": product, "s": high + low,
        "r": results[how], "n": first, "m": second, "t": random_source.choice(THINGS),
    }  # fmt: skip
    answer = working.format(**values)
    if templates in (STORIES, HELDOUT_STORIES):
        answer = f"{answer} The answer is {results[how]}."
    return Problem(template=name, question=question.format(**values), answer=answer, gold=str(results[how]))
