# ruff: noqa: E501 - a pattern is easier to read on one line
"""What do we know of this kind of line already? A store of line shapes, so that a line seen before costs no parsing.

A line's skeleton is the line without its digits; all skeletons of a log come from one translation of its bytes. A
skeleton seen before is one look in a dictionary. One that is new but for an identifier (a hash, a request's id) is
found by its words, those with digits in them taken as equal. Only a line that is new in its words is parsed, mined
into a template and read by the signature rules, once for all the logs that a service will send.

A store is bounded, whatever comes: past `MAX_SHAPES` only lines that speak of trouble are told apart, and the next log
begins with an empty store. Where a number decides what a line means (a status, an exit code, none or some failures),
a skeleton has one shape for each meaning.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from midwatch.copilot import rules, signatures
from midwatch.copilot.parsing import clean, clip, parse, strip_time
from midwatch.copilot.structured import Level
from midwatch.copilot.templates import Miner, Wording

MAX_SHAPES = 20_000
MAX_NEW_SHAPES = 15_000
"""Shapes that one log may add; a third more if their lines speak of trouble."""
MAX_SKELETONS = 100_000
MAX_LEARNED = 0.25
CHUNK_TO_JUDGE = 2_000
"""If more than this share of so many lines has skeletons of its own, they hold identifiers: not worth keeping."""
MAX_WORDS_KNOWN = 100_000
MAX_VARIANTS = 64
_MAX_DECIDING_CHARS = 500
MAX_KEY_BYTES = 2_000
"""A longer skeleton is known by its start and its end."""

_DIGITS = b"0123456789"
_DELIMITERS = b"\"',:;{}[]()=|<>&\t\r"
_TO_WORDS = bytes(48 if code in _DIGITS else 32 if code in _DELIMITERS else code for code in range(256))
_ACCESS = re.compile(r'" ([1-5]\d\d) (?:\d+|-)(?: |$)')
_NUMBER = re.compile(r"[ =(\"':]\d+(?:\.\d+(?=%))?(?![\w.:/-])")
_NUMERIC_LEVEL = re.compile(r"^<\d{1,3}>|\"level\": ?\d\d\b")
_DECIDES = frozenset(
    ("0", "127", "100", *map(str, range(90, 100)), *map(str, range(130, 140)), *map(str, range(400, 600)))
)
_DECIDED_BY_NUMBERS = re.compile(
    r"\" [1-5]\d\d |^<\d|\d ?%"
    r"|(?:exit\w*|stat(?:us|e)|code|errno|signal|level|fail\w*|err(?:or)?s?|severity|priority|restarts?|dropped|lag|pauses?|took|averages?"
    r"|returned|answered|responded|got|response|limit|problems?|vulnerabilities|timeouts?|throttled|rejected|deadlocks|http/\d\.\d)"
    r"\W{0,4}(?:[a-z]+[ :=]{1,2}){0,2}\d"
    r"|\d+(?: [a-z]+)? (?:fail|err|problem|tests?|vulnerab|nodes|warning|violation|restart)"
)
_MAYBE_TROUBLE = (
    "err",
    "fail",
    "fatal",
    "panic",
    "excep",
    "refus",
    "denied",
    "time",
    "unable",
    "cannot",
    "not ",
    "kill",
    "lost",
)
"""Words that a line must hold to be told apart once a store is full."""
_TROUBLE = re.compile(
    r"error|fail(?:ed|ure|ing|s\b|\b)|fatal|\bpanic|exception|exceed|refus|\bden(?:ied|y|ies)\b|timed?[- ]?out|\bunable\b"
    r"|\b(?:cannot|can'?t|could(?: not|n't)|does(?: not|n't)|did(?: not|n't)|is(?: not|n't)|won't|not (?:found|ready|allowed|permitted|available|responding|reachable|set))\b"
    r"|critical|\bkill(?:ed|ing)?\b|abort|\blost\b|\bdown\b|\bresets?\b|expired?\b|\bfull\b|invalid|unknown|\bmissing\b|unreachable|unavailable"
    r"|\bno (?:such|route|space|active|healthy|available|leader|quorum|endpoints?|space|response|nodes?|matching|tests?)\b|reject|dropp(?:ed|ing)\b|exhaust"
    r"|\btoo (?:many|long|large|slow|old|few|small)\b|\bstuck\b|\bstall|crash|forbidden|unauthori[sz]ed|corrupt|conflict|unhealthy|overload|\bevict|throttl"
    r"|deadlock|back-?off|mismatch|violat|insufficient|\bout of\b|limit reached|g(?:ave|iving) up|bad gateway|unexpected|misconfig|stale|\blag(?:ging)?\b|behind\b"
    r"|degraded|terminated|segfault|core dumped|undefined|unresolved|not (?:be|exist)|no longer|\bslow\b|blocked|exited with|non-?zero"
)
"""Words that tell of trouble at any level: programs log much of it as information."""
_ECHO = re.compile(r"^\S{0,40}\s*\+{1,2} \w")
_FRAME = re.compile(
    r"^\s*(?:at [\w$.<>/@]+[ (:]|at async |File \"[^\"]{1,300}\", line \d+|\d+: 0x[0-9a-f]+|#\d+ |from \S{1,300}:\d+:in "
    r"|/\S{1,300}\.go:\d+|\.{3} \d+ (?:more|common frames))"
)
_EXCEPTION = re.compile(
    r"^(?:\w+ ){0,2}(?:Caused by: |Unhandled exception\.? )?(?:[\w$]+[.:]){0,12}[\w$]*(?:Error|Exception|Fault|Interrupt|Timeout)\b(?::| \[|$)"
    r"|^panic: |^Exception in thread|^thread '.*' panicked|^fatal error: |^Unhandled exception|^Caused by: "
)
_PLAIN_TROUBLE = (
    *(
        "error",
        "fatal",
        "exception",
        "exceed",
        "refus",
        "critical",
        "abort",
        "invalid",
        "unknown",
        "unreachable",
        "unavailable",
    ),
    *(
        "reject",
        "exhaust",
        "crash",
        "forbidden",
        "unauthori",
        "corrupt",
        "conflict",
        "unhealthy",
        "overload",
        "throttl",
    ),
    *(
        "deadlock",
        "mismatch",
        "violat",
        "insufficient",
        "unexpected",
        "misconfig",
        "degraded",
        "terminated",
        "undefined",
    ),
)
"""Words of `_TROUBLE` that need no pattern."""
_TROUBLE_HINTS = (
    *(
        "fail",
        "panic",
        "deni",
        "deny",
        "timed",
        "timeout",
        "time out",
        "time-out",
        "unable",
        "cannot",
        "can't",
        "cant",
        "could",
    ),
    *(
        "doesn",
        "does not",
        "did not",
        "didn",
        "is not",
        "isn",
        "won't",
        "not ",
        "kill",
        "lost",
        "down",
        "reset",
        "expire",
        "full",
    ),
    *(
        "missing",
        "no ",
        "dropp",
        "too ",
        "stuck",
        "stall",
        "evict",
        "backoff",
        "back-off",
        "out of",
        "limit reached",
        "ave up",
    ),
    *(
        "iving up",
        "bad gateway",
        "stale",
        "lag",
        "behind",
        "segfault",
        "core dumped",
        "unresolved",
        "slow",
        "blocked",
        "exited",
        "zero",
    ),
)
"""A line without any of these needs no look at `_TROUBLE`, which takes ten times as long."""
_CHANGE = re.compile(
    r"\b(?:shut(?:ting)? ?down|shutdown|sigterm|sigkill|sighup|stopp(?:ed|ing)|starting|started|restart(?:ed|ing)?|ready (?:to|for)|is ready|became ready"
    r"|listening|reload(?:ed|ing)?|promoted|fail(?:ing)?[- ]?over|switchover|recover(?:ed|y)?|resum(?:ed|ing)|back (?:online|to normal|up)|re-?connected|re-?established"
    r"|rolled back|rollback|roll(?:ing)?[ -]?out|deploy(?:ed|ing|ment)|upgrad(?:ed|ing)|scal(?:ed|ing) (?:up|down|to)|maintenance|drain(?:ed|ing)|resolved|cleared|elected"
    r"|joined|left the|healthy|leader|primary|standby|released?|migrat(?:ed|ing|ion))\b"
)
"""Words of a change of state: what was stopped, started, changed or came back."""
_DETAIL = re.compile(
    r"^\s*(?:(?-i:DETAIL|HINT|CAUSE|REASON)|expected|received|actual|got|want(?:ed)?|but was|left|right)\b\s*[:=]|^E  \s*\S|^\s*● |^\s*[>+] +\d+ \||^\s*(?:assert|require)\b",
    re.IGNORECASE,
)
_NOISE = re.compile(r"^[\W_]*(?:\w{0,2}[\W_]*)$")


@dataclass(slots=True, eq=False)
class Shape:
    """What is known of all lines of one wording. `hits` are signature rules (index, weight) that match it.

    `source` tells that the line prints a program's text and not its outcome; `marks` are the build server's words in
    it, by bit; `trouble` that it speaks of trouble, whatever its level; `detail` that it says what
    an assertion compared; `step` that a build's step begins; `change`
    that something changed its state; `variants` holds one shape for each meaning of its numbers, where these decide.
    """

    wording: Wording
    level: Level = ""
    program: str = ""
    hits: tuple[tuple[int, float], ...] = ()
    marks: int = 0
    exception: bool = False
    frame: bool = False
    noise: bool = False
    source: bool = False
    rollout: bool = False
    end_of_build: bool = False
    trouble: bool = False
    detail: bool = False
    step: bool = False
    change: bool = False
    variants: dict[tuple[str, ...], Shape] | None = field(default=None, repr=False)


@dataclass(slots=True)
class Room:
    """How many shapes a log has added to a store."""

    taken: int = 0
    taken_by_trouble: int = 0


class TemplateStore:
    """Shapes of lines, kept between logs. Safe to use from several threads; reading new lines takes a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self.miner = Miner()
        self._skeletons: dict[bytes, Shape] = {}
        self._by_words: dict[tuple[bytes, ...], Shape] = {}
        self._words = _Words()
        self._settled = 0
        self.blank = Shape(self.miner.add(""), noise=True)
        self.rest = Shape(self.miner.add("(more lines, all different)"), noise=True)

    def __len__(self) -> int:
        return len(self._by_words)

    def begin(self) -> None:
        """Make room before a log is read: a store that was filled by lines without end starts anew."""
        with self._lock:
            if len(self._by_words) >= MAX_SHAPES:
                self._reset()

    def settle(self) -> None:
        """Judge the templates again if many new wordings have come since the last time."""
        with self._lock:
            if len(self._by_words) > self._settled * 1.05:
                self.miner.settle()
                self._settled = len(self._by_words)

    def shapes(self, raw: bytes, lines: int, text: Callable[[int], str], room: Room) -> list[Shape]:
        """The shape of each of `lines` lines, which `raw` holds with a newline between; `text` gives line i.

        `room` counts what one log adds to the store; it is the same for all parts of a log.
        """
        keys = raw.translate(None, _DIGITS).split(b"\n")
        assert len(keys) == lines, "a line holds a newline"
        if max(map(len, keys)) > MAX_KEY_BYTES:
            keys = [key if len(key) <= MAX_KEY_BYTES else key[:1_500] + key[-500:] for key in keys]
        found: list[Shape | None] = list(map(self._skeletons.get, keys))
        unknown = [index for index, shape in enumerate(found) if shape is None]
        if unknown:
            with self._lock:
                self._fill(found, unknown, keys, _words_of(raw, keys, unknown, text), text, room)
        shapes: list[Shape] = found  # type: ignore[assignment]
        deciding = {shape for shape in set(shapes) if shape.variants is not None}
        if deciding:
            with self._lock:
                self._tell_apart(shapes, deciding, text, room)
        return shapes

    def _fill(  # noqa: PLR0917 - private, and each is a different thing
        self,
        found: list[Shape | None],
        unknown: list[int],
        keys: Sequence[bytes],
        words_of: Iterable[bytes],
        text: Callable[[int], str],
        room: Room,
    ) -> None:
        """Find or make the shapes of lines whose skeleton is not known, in place."""
        known, by_words, word = self._skeletons, self._by_words, self._words.__getitem__
        fresh: list[tuple[Shape, str]] = []
        learn = len(unknown) < MAX_LEARNED * len(found) or len(found) < CHUNK_TO_JUDGE
        for index, spaced in zip(unknown, words_of, strict=True):
            words = tuple(map(word, spaced.split()))
            shape = by_words.get(words)
            new = shape is None
            if shape is None:
                shape = known.get(keys[index]) or self._new(words, text(index), fresh, room)
            if new or learn:
                if len(known) >= MAX_SKELETONS:
                    known.clear()
                known[keys[index]] = shape
            found[index] = shape
        self._read_by_rules(fresh)

    def _new(self, words: tuple[bytes, ...], line: str, fresh: list[tuple[Shape, str]], room: Room) -> Shape:
        if not words:
            return self.blank
        room.taken += 1
        if room.taken > MAX_NEW_SHAPES:
            lower = line[:MAX_KEY_BYTES].lower()
            if room.taken_by_trouble >= MAX_NEW_SHAPES // 3 or not any(word in lower for word in _MAYBE_TROUBLE):
                return self.rest
            room.taken_by_trouble += 1
        shape = self._make(line, fresh)
        if _DECIDED_BY_NUMBERS.search(fresh[-1][1][:_MAX_DECIDING_CHARS]) is not None:
            numbers = _numbers(line)
            shape.variants = {numbers: shape} if numbers else None
        self._by_words[words] = shape
        return shape

    def _make(self, line: str, fresh: list[tuple[Shape, str]]) -> Shape:
        parsed = parse(line)
        message = parsed.message
        raw = line if len(line) < signatures.MAX_LINE_CHARS else clip(line, signatures.MAX_LINE_CHARS)
        lower = strip_time(clean(raw)).lower()
        frame = _FRAME.match(message) is not None
        shape = Shape(
            self.miner.add(message),
            parsed.level,
            parsed.program,
            marks=sum(1 << bit for bit, mark in enumerate(rules.CI_MARKS) if mark in lower),
            exception=not frame and _EXCEPTION.match(message) is not None,
            frame=frame,
            noise=len(message) < 4 or _NOISE.match(message) is not None,
            source=prints_source(line, message),
            rollout=any(word in lower for word in rules.ROLLOUT_LITERALS) and rules.ROLLOUT.search(lower) is not None,
            end_of_build="##[error]" in lower or "build failure" in lower,
            trouble=_tells_of_trouble(message.lower()),
            detail=_DETAIL.match(message) is not None,
            step="##[group]run " in lower,
            change=_CHANGE.search(message[:400].lower()) is not None,
        )
        fresh.append((shape, lower))
        return shape

    def _read_by_rules(self, fresh: list[tuple[Shape, str]]) -> None:
        told = [(shape, lower) for shape, lower in fresh if not shape.source]
        hits = signatures.scan([lower for _, lower in told], [shape.level for shape, _ in told])
        gathered: dict[int, list[tuple[int, float]]] = {}
        for hit in hits:
            gathered.setdefault(hit.line, []).append((hit.rule, hit.weight))
        for index, found in gathered.items():
            told[index][0].hits = tuple(found)

    def _tell_apart(self, shapes: list[Shape], deciding: set[Shape], text: Callable[[int], str], room: Room) -> None:
        """Replace shapes whose numbers decide by the variant of each line, in place."""
        fresh: list[tuple[Shape, str]] = []
        for index, shape in enumerate(shapes):
            if shape.variants is None or shape not in deciding:
                continue
            line = text(index)
            numbers = _numbers(line)
            variant = shape.variants.get(numbers)
            if variant is None:
                variant = shape
                if len(shape.variants) < MAX_VARIANTS and room.taken < MAX_NEW_SHAPES:
                    room.taken += 1
                    variant = self._make(line, fresh)
                    shape.variants[numbers] = variant
            shapes[index] = variant
        self._read_by_rules(fresh)


class _Words(dict[bytes, bytes]):
    """A word as it counts for a shape: itself, or `0` if it holds a digit (digits are zeros by then)."""

    def __missing__(self, word: bytes) -> bytes:
        if b"0" in word or len(word) > 80:
            if len(word) > 16:  # an identifier: it will not come again
                return b"0"
            counts = b"0"
        else:
            counts = word
        if len(self) < MAX_WORDS_KNOWN:
            self[word] = counts
        return counts


def _words_of(raw: bytes, keys: Sequence[bytes], unknown: Sequence[int], text: Callable[[int], str]) -> Iterable[bytes]:
    """Each unknown line with its digits as zeros and its delimiters as spaces."""
    if len(unknown) * 4 > len(keys) and len(raw) < len(keys) * MAX_KEY_BYTES:
        spaced = raw.translate(_TO_WORDS).split(b"\n")
        return [
            line if len(line) <= MAX_KEY_BYTES else line[:1_500] + line[-500:]
            for line in map(spaced.__getitem__, unknown)
        ]
    return (clip(text(index), MAX_KEY_BYTES).encode("utf-8", "replace").translate(_TO_WORDS) for index in unknown)


def _tells_of_trouble(lower: str) -> bool:
    """Whether a message says that something went wrong, and does not take it back."""
    text = lower[:MAX_KEY_BYTES]
    if not any(word in text for word in _PLAIN_TROUBLE) and not (
        any(hint in text for hint in _TROUBLE_HINTS) and _TROUBLE.search(text) is not None
    ):
        return False
    return rules.NEGATED.search(text) is None


def prints_source(line: str, message: str) -> bool:
    """Whether a line shows a script's text (build servers echo what they will run), which is not its outcome."""
    return (
        "[36;1m" in line[:60]
        or _ECHO.match(line[:80]) is not None
        or rules.SOURCE_CODE.search(message[:200]) is not None
    )


def _numbers(line: str) -> tuple[str, ...]:
    """The numbers of a line that may decide what it means, the others only by their rough size."""
    access = _ACCESS.search(line) if '" ' in line else None
    if access is not None:
        return (access[1],)
    found = [number[1:] for number in _NUMBER.findall(line[:MAX_KEY_BYTES])]
    level = _NUMERIC_LEVEL.search(line, 0, MAX_KEY_BYTES)
    first = [level[0]] if level is not None else []
    return tuple(first + [number if number in _DECIDES else "0000" if len(number) > 3 else "1" for number in found])
