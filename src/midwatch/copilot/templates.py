"""Which lines say the same thing? Log templates by a fixed-depth tree, after Drain.

The idea is Drain's (He et al., ICWS 2017): lines of equal length that agree in their first words and in enough of the
others are one template, and where they differ stands a wildcard. What is ours: every word is masked once and then
looked up, so a line costs little more than a split; a line whose masked words were seen before is one dictionary
lookup; and a value after `key=` is always a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

WILDCARD = "<*>"
SIMILARITY = 0.7
"""Least share of equal words for a line to join a template."""
MAX_WORDS = 120
"""Words of a line that take part; the rest of a longer line is one variable."""
MAX_WORD_CACHE = 50_000
MAX_CHILDREN = 100
"""Templates compared with one line at most; a log of random words cannot make mining quadratic."""

_HAS_VARIABLE = re.compile(r"[0-9/=@\\]")
_PARTS = re.compile(r"([=:,()\[\]{}\"'|;<>@#]+)")
_DIGIT = re.compile(r"[0-9]")
_PATH = re.compile(r"^(?:[A-Za-z]:)?[/\\]|[/\\].*[/\\]")
_RUN = re.compile(r"<\*>(?:[:.,@/_#|;-]*<\*>)+")
_CALENDAR = frozenset(
    (
        *("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
        *("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "UTC", "GMT", "CEST", "CET", "EST", "PDT", "PST"),
    )
)


@dataclass(slots=True)
class Template:
    """Lines with one wording. `first` and `last` are positions in the mined sequence, from 0."""

    id: int
    words: list[str]
    count: int
    first: int
    last: int

    @property
    def text(self) -> str:
        """The wording, with `<*>` where lines differ."""
        return " ".join(self.words)


class Miner:
    """Assigns each message to a template, in one pass and bounded memory per template."""

    def __init__(self, similarity: float = SIMILARITY) -> None:
        self.templates: list[Template] = []
        self._similarity = similarity
        self._words: dict[str, str] = {}
        self._seen: dict[tuple[str, ...], Template] = {}
        self._leaves: dict[tuple[int, str, str], list[Template]] = {}
        self._position = 0

    def add(self, message: str) -> Template:
        """The template of a message, made new if no known one is near enough."""
        cache = self._words
        raw = message.split(None, MAX_WORDS)
        words = tuple([cache.get(word) or self._mask(word) for word in raw[:MAX_WORDS]])
        template = self._seen.get(words)
        if template is None:
            template = self._place(words)
            if len(self._seen) < MAX_WORD_CACHE:
                self._seen[words] = template
        template.count += 1
        template.last = self._position
        self._position += 1
        return template

    def _mask(self, word: str) -> str:
        masked = mask_word(word)
        if len(self._words) < MAX_WORD_CACHE:
            self._words[word] = masked
        return masked

    def _place(self, words: tuple[str, ...]) -> Template:
        first = words[0] if words else ""
        second = words[1] if len(words) > 1 else ""
        key = (len(words), WILDCARD if WILDCARD in first else first, WILDCARD if WILDCARD in second else second)
        leaf = self._leaves.setdefault(key, [])
        best, best_score = None, -1.0
        for candidate in leaf:
            score = _similarity(candidate.words, words)
            if score > best_score:
                best, best_score = candidate, score
        if best is not None and (best_score >= self._similarity or len(leaf) >= MAX_CHILDREN):
            known = best.words
            for index, word in enumerate(words):
                if known[index] != word:
                    known[index] = WILDCARD
            return best
        template = Template(len(self.templates), list(words), 0, self._position, self._position)
        self.templates.append(template)
        leaf.append(template)
        return template


def mine(messages: Iterable[str]) -> tuple[list[int], list[Template]]:
    """Templates of messages in order: each message's template id, and the templates by id."""
    miner = Miner()
    assigned = [miner.add(message).id for message in messages]
    return assigned, miner.templates


def mask_word(word: str) -> str:
    """A word with what varies in it (numbers, hex, addresses, paths, values after `=`) replaced by `<*>`."""
    if len(word) > 200:
        return WILDCARD
    if _HAS_VARIABLE.search(word) is None:
        return WILDCARD if word in _CALENDAR else word
    parts = _PARTS.split(word)
    out: list[str] = []
    after_equals = False
    for index, part in enumerate(parts):
        if index % 2:
            after_equals = part.startswith("=") and bool(out and out[-1])
            out.append(part)
        elif part:
            variable = after_equals or _varies(part)
            out.append(WILDCARD if variable else part)
            after_equals = False
    return _RUN.sub(WILDCARD, "".join(out))


def _varies(part: str) -> bool:
    return _DIGIT.search(part) is not None or _PATH.search(part) is not None


def _similarity(known: list[str], words: tuple[str, ...]) -> float:
    """Share of equal words among those that say something; a place that is a variable on both sides says nothing."""
    same = telling = 0
    for a, b in zip(known, words, strict=True):
        if a == b:
            if a != WILDCARD:
                same += 1
                telling += 1
        elif a != WILDCARD or WILDCARD not in b:
            telling += 1
    return same / telling if telling else 1.0
