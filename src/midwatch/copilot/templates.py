"""Which lines say the same thing? Log templates, in two steps: wordings, then templates of wordings.

A wording is a message whose every word that holds a number, an address or a path has become `<*>`, with a quantity and
its unit as one variable. Wordings of equal length that agree in their first words and in enough of the others become
one template, and where they differ stands a wildcard: Drain's tree (He et al., ICWS 2017). What is ours comes after,
once the whole log is known (`settle`): a place at which a template that is often seen takes two values only, both
plain words, tells two states apart ("VM paused", "VM resumed") and splits it; templates that differ in one of their
first two words alone, and of which there are many, are one ("com.a.Sync: run late", "com.b.Sync: run late").

Every word is masked once and then looked up, and so is every wording, so that a line costs little more than a split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import eq

WILDCARD = "<*>"
SIMILARITY = 0.7
"""Least share of equal words for a wording to join a template."""
MAX_WORDS = 120
"""Words of a line that take part; the rest of a longer line is one variable."""
MAX_WORD_CACHE = 50_000
MAX_WORDINGS = 50_000
"""Wordings that are kept apart; later ones are known only by their template."""
MAX_CHILDREN = 100
"""Templates compared with one wording at most; a log of random words cannot make mining quadratic."""
STATES = 2
MIN_SEEN_PER_STATE = 10
"""A place that takes at most so many values, each seen so often on average, is a state and no variable."""
MIN_SUBJECTS = 5
MIN_SHARED_WORDS = 4
"""So many templates that share all words but an early one, and at least so many of them, are one."""

_HAS_VARIABLE = re.compile(r"[0-9/=@\\]")
_PARTS = re.compile(r"([=:,()\[\]{}\"'|;<>@#]+)")
_DIGIT = re.compile(r"[0-9]")
_PATH = re.compile(r"^(?:[A-Za-z]:)?[/\\]|[/\\].*[/\\]")
_RUN = re.compile(r"<\*>(?:[:.,@/_#|;-]*<\*>)+")
_LETTERS = re.compile(r"[^\W_]")
_CALENDAR = frozenset(
    (
        *("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
        *("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "UTC", "GMT", "CEST", "CET", "EST", "PDT", "PST"),
    )
)
_UNITS = frozenset(
    (
        *("b", "kb", "mb", "gb", "tb", "kib", "mib", "gib", "byte", "bytes", "%"),
        *("ns", "us", "ms", "msec", "s", "sec", "secs", "second", "seconds"),
        *("min", "mins", "minute", "minutes", "h", "hour", "hours", "d", "day", "days"),
    )
)


@dataclass(slots=True)
class Template:
    """Lines with one wording, or several near ones. `first` and `last` are positions in the mined sequence, from 0."""

    id: int
    words: list[str]
    count: int
    first: int
    last: int

    @property
    def text(self) -> str:
        """The wording, with `<*>` where lines differ."""
        return " ".join(self.words)


@dataclass(slots=True, eq=False)
class Wording:
    """A message without its variables, how often it was seen and where, and the template that it belongs to."""

    words: tuple[str, ...]
    template: Template = field(repr=False)
    count: int = 0
    first: int = 0
    last: int = 0


class Miner:
    """Assigns each message to a wording and a template, in one pass and bounded memory."""

    def __init__(self, similarity: float = SIMILARITY) -> None:
        self.templates: list[Template] = []
        self._similarity = similarity
        self._words: dict[str, str] = {}
        self._seen: dict[tuple[str, ...], Wording] = {}
        self._wordings: dict[tuple[str, ...], Wording] = {}
        self._leaves: dict[tuple[int, str, str], list[Template]] = {}
        self._position = 0

    def add(self, message: str) -> Wording:
        """The wording of a message; its template is made new if no known one is near enough."""
        cache = self._words
        raw = message.split(None, MAX_WORDS)
        words = tuple([cache.get(word) or self._mask(word) for word in raw[:MAX_WORDS]])
        wording = self._seen.get(words) or self._read(words)
        if wording.count == 0:
            wording.first = self._position
        wording.count += 1
        wording.last = self._position
        template = wording.template
        template.count += 1
        template.last = self._position
        self._position += 1
        return wording

    def settle(self) -> list[Template]:
        """The templates, judged again with the whole log known; every wording then points to its own one."""
        members: dict[int, list[Wording]] = defaultdict(list)
        for wording in self._wordings.values():
            members[wording.template.id].append(wording)
        groups = [part for group in members.values() for part in _split(group)]
        for place in (0, 1):
            groups = _join(groups, place)
        groups.sort(key=lambda group: min(wording.first for wording in group))
        self.templates = [_template(number, group) for number, group in enumerate(groups)]
        self._leaves = {}
        for template in self.templates:
            self._leaves.setdefault(_leaf(template.words), []).append(template)
        return self.templates

    def _mask(self, word: str) -> str:
        masked = mask_word(word)
        if len(self._words) < MAX_WORD_CACHE:
            self._words[word] = masked
        return masked

    def _read(self, raw: tuple[str, ...]) -> Wording:
        words = join_quantities(raw)
        wording = self._wordings.get(words)
        if wording is None:
            wording = Wording(words, self._place(words))
            if len(self._wordings) >= MAX_WORDINGS:
                words = tuple(wording.template.words)
                wording = self._wordings.setdefault(words, Wording(words, wording.template))
                return wording
            self._wordings[words] = wording
        if len(self._seen) < MAX_WORDINGS:
            self._seen[raw] = wording
        return wording

    def _place(self, words: tuple[str, ...]) -> Template:
        leaf = self._leaves.setdefault(_leaf(words), [])
        best, best_score = None, -1.0
        full = len(leaf) >= MAX_CHILDREN
        for candidate in leaf:
            known = candidate.words
            equal = sum(map(eq, known, words))
            if full:
                score = float(equal)
            elif equal < self._similarity * (len(words) - known.count(WILDCARD)):
                continue  # cannot be near enough
            else:
                score = _similarity(known, words)
            if score > best_score:
                best, best_score = candidate, score
        if best is not None and (best_score >= self._similarity or full):
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
    assigned = [miner.add(message) for message in messages]
    templates = miner.settle()
    return [wording.template.id for wording in assigned], templates


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


def join_quantities(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words in which a masked number takes its unit, and a repeat of it in brackets, into itself.

    `<*> bytes (<*> KB)` becomes `<*>`: whether a program adds the readable form depends on the number alone.
    """
    if WILDCARD not in "".join(words):
        return words
    out: list[str] = []
    for word in words:
        if out and WILDCARD in out[-1] and _is_variable(out[-1]):
            bare = word.strip("()[],.;:").lower()
            if bare in _UNITS and (not word.startswith("(") or out[-1].startswith("(")):
                continue
        out.append(word)
    joined: list[str] = []
    for word in out:
        if not (joined and word.startswith("(") and _says_nothing(word) and _is_variable(joined[-1])):
            joined.append(word)
    return tuple(joined)


def _is_variable(word: str) -> bool:
    return WILDCARD in word and _says_nothing(word)


def _says_nothing(word: str) -> bool:
    return _LETTERS.search(word.replace(WILDCARD, "")) is None


def _varies(part: str) -> bool:
    return _DIGIT.search(part) is not None or _PATH.search(part) is not None


def _leaf(words: Iterable[str]) -> tuple[int, str, str]:
    words = tuple(words)
    first = words[0] if words else ""
    second = words[1] if len(words) > 1 else ""
    return len(words), WILDCARD if WILDCARD in first else first, WILDCARD if WILDCARD in second else second


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


def _split(group: list[Wording]) -> list[list[Wording]]:
    """The wordings of one template by state, if some place of it holds states."""
    if len(group) < STATES:
        return [group]
    total = sum(wording.count for wording in group)
    for column in zip(*(wording.words for wording in group), strict=True):
        values = set(column)
        if 2 <= len(values) <= STATES and WILDCARD not in values and total >= MIN_SEEN_PER_STATE * len(values):
            parts: dict[str, list[Wording]] = defaultdict(list)
            for value, wording in zip(column, group, strict=True):
                parts[value].append(wording)
            return [smaller for part in parts.values() for smaller in _split(part)]
    return [group]


def _join(groups: list[list[Wording]], place: int) -> list[list[Wording]]:
    """Groups of which many differ only in the word at `place`, made one."""
    alike: dict[tuple[str, ...], list[list[Wording]]] = defaultdict(list)
    for number, group in enumerate(groups):
        words = _common(group)
        key = (*words[:place], "", *words[place + 1 :]) if len(words) > place else ("", str(number))
        alike[key].append(group)
    joined: list[list[Wording]] = []
    for key, same in alike.items():
        plain = sum(bool(word) and WILDCARD not in word for word in key)
        if len(same) >= MIN_SUBJECTS and plain >= MIN_SHARED_WORDS:
            joined.append([wording for group in same for wording in group])
        else:
            joined += same
    return joined


def _common(group: list[Wording]) -> list[str]:
    words = list(group[0].words)
    for wording in group[1:]:
        for index, word in enumerate(wording.words):
            if words[index] != word:
                words[index] = WILDCARD
    return words


def _template(number: int, group: list[Wording]) -> Template:
    template = Template(
        number,
        _common(group),
        sum(wording.count for wording in group),
        min(wording.first for wording in group),
        max(wording.last for wording in group),
    )
    for wording in group:
        wording.template = template
    return template
