"""What may stand in braces in a message of the bank, and how such a message is filled.

`{service}` is a name, `{service2}` a second one, `{n:3-12}` a number in a range, `{?one|two}` one of these texts,
`{{word}}` the text `{word}` itself. Braces around anything that is not a word (`{"a": 1}`, `{}`) are plain text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

NAMES = frozenset(
    (
        *("service", "host", "pod", "node", "ns", "db", "user", "domain", "image", "volume", "queue", "topic", "table"),
        *("job", "test", "file", "func", "class", "branch", "key", "method", "path", "url", "bucket", "group", "env"),
        *(
            "secret",
            "configmap",
            "pvc",
            "container",
            "cluster",
            "region",
            "repo",
            "pkg",
            "email",
            "device",
            "unit",
            "route",
        ),
    )
)
"""Slots that are names: one value each in an incident, the same wherever it stands."""
NUMBERS: dict[str, tuple[int, int]] = {
    "n": (2, 980),
    "ms": (2, 9800),
    "sec": (1, 600),
    "pct": (1, 99),
    "kb": (64, 9_800_000),
    "mb": (16, 7900),
    "gb": (1, 480),
    "pid": (2, 64000),
    "port": (1024, 65000),
    "code": (1, 255),
}
"""Slots that are numbers, with the range that they are drawn from unless one is written."""
VALUES = frozenset(("ip", "hex", "uuid", "ver", "commit"))
"""Slots that are made up anew each time that a message is printed."""
TIMES = frozenset(("iso", "clf", "day", "clock", "epoch", "ctime"))
"""Slots that are the moment of the line: ISO 8601, the access log's form, the day, the clock, seconds, `ctime`."""
KINDS = NAMES | frozenset(NUMBERS) | VALUES | TIMES

PARTS = {"service": ("pod", "container"), "domain": ("url", "email")}
"""Names that other names are made of: `{pod}` holds the name of `{service}`."""

_SLOT = re.compile(
    r"\{\{(?P<literal>[^{}]*)\}\}"
    r"|\{\?(?P<choice>[^{}]*)\}"
    r"|\{(?P<kind>[a-z]+)(?P<second>[2-9]?)(?::(?P<low>\d+)-(?P<high>\d+))?\}"
)
_WORD = re.compile(r"\{(\??[A-Za-z_][\w.:-]*)\}")


def problems(text: str) -> Iterator[str]:
    """What is wrong with the slots of a message, a sentence each."""
    for found in _SLOT.finditer(text):
        if found["choice"] is not None and "|" not in found["choice"]:
            yield f"{found[0]} offers no choice; write {{?one|two}}."
        if found["low"] is None:
            continue
        if found["kind"] in KINDS and found["kind"] not in NUMBERS:
            yield f"{found[0]} gives a range to a slot that is no number; numbers are {', '.join(sorted(NUMBERS))}."
        elif int(found["low"]) > int(found["high"]):
            yield f"{found[0]} has a range that ends before it begins."
    bare = _SLOT.sub(lambda found: " " if found["kind"] is None or found["kind"] in KINDS else found[0], text)
    for word in _WORD.findall(bare):
        yield f"{{{word}}} is not a slot; a literal one is written {{{{{word}}}}}."


def kinds_in(text: str) -> Iterator[tuple[str, str]]:
    """Each slot of a message as (kind, name), such as ("service", "service2")."""
    for found in _SLOT.finditer(text):
        if found["kind"]:
            yield found["kind"], found["kind"] + found["second"]


def fill(text: str, value_of: Callable[[str, str], str], random_source: random.Random) -> str:
    """A message with its slots filled: `value_of(kind, name)` gives what is not a number in a written range."""

    def one(found: re.Match[str]) -> str:
        if found["literal"] is not None:
            return f"{{{found['literal']}}}"
        if found["choice"] is not None:
            return random_source.choice(str(found["choice"]).split("|"))
        if found["low"] is not None:
            return str(random_source.randint(int(found["low"]), int(found["high"])))
        return value_of(found["kind"], found["kind"] + found["second"])

    return _SLOT.sub(one, text)
