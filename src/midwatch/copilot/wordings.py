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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from midwatch.copilot import rules, signatures
from midwatch.copilot.parsing import Level, clean, clip, parse
from midwatch.copilot.templates import Miner, Wording

MAX_SHAPES = 20_000
MAX_SKELETONS = 200_000
MAX_WORDS_KNOWN = 200_000
MAX_VARIANTS = 64
MAX_KEY_BYTES = 2_000
"""A longer skeleton is known by its start and its end."""

_DIGITS = b"0123456789"
_DELIMITERS = b"\"',:;{}[]()=|<>&\t\r"
_TO_WORDS = bytes(48 if code in _DIGITS else 32 if code in _DELIMITERS else code for code in range(256))
_ACCESS = re.compile(r'" ([1-5]\d\d) (?:\d+|-)(?: |$)')
_NUMBER = re.compile(r"(?<![\w.:,/\[-])\d+(?![\w.:/-])|(?<=\"level\":)\d+|^<\d+>|\d+(?=%)")
_TELLING = re.compile(r"^(?:0|[45]\d\d|13\d|127|100|9\d|<\d+>)$")
_TROUBLE = re.compile(
    r"err|fail|fatal|panic|exce(?:ption|eded)|refus|denied|timed? ?out|unable|cannot|could not|crit|kill|abort|lost|down|reset",
    re.IGNORECASE,
)
_NUMERIC_LITERALS = tuple(
    sorted({literal for rule in rules.RULES if re.search(r"\\d|\d", rule.pattern.pattern) for literal in rule.literals})
)
_ECHO = re.compile(r"^\S{0,40}\s*\+{1,2} \w")
_FRAME = re.compile(
    r"^\s*(?:at [\w$.<>/@]+[ (:]|at async |File \"[^\"]{1,300}\", line \d+|\d+: 0x[0-9a-f]+|#\d+ |from \S{1,300}:\d+:in "
    r"|/\S{1,300}\.go:\d+|\.{3} \d+ (?:more|common frames))"
)
_EXCEPTION = re.compile(
    r"^(?:\w+ ){0,2}(?:Caused by: |Unhandled exception\.? )?(?:[\w$]+[.:]){0,12}[\w$]*(?:Error|Exception|Fault|Interrupt|Timeout)\b(?::| \[|$)"
    r"|^panic: |^Exception in thread|^thread '.*' panicked|^fatal error: |^Unhandled exception|^Caused by: "
)
_NOISE = re.compile(r"^[\W_]*(?:\w{0,2}[\W_]*)$")


@dataclass(slots=True, eq=False)
class Shape:
    """What is known of all lines of one wording. `hits` are signature rules (index, weight) that match it.

    `source` tells that the line prints a program's text and not its outcome; `marks` are the build server's words in
    it, by bit; `variants` holds one shape for each meaning of its numbers, where these decide.
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
    variants: dict[tuple[str, ...], Shape] | None = field(default=None, repr=False)


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

    def shapes(self, raw: bytes, lines: int, text: Callable[[int], str]) -> list[Shape]:
        """The shape of each of `lines` lines, which `raw` holds with a newline between; `text` gives line i."""
        keys = raw.translate(None, _DIGITS).split(b"\n")
        assert len(keys) == lines, "a line holds a newline"
        if max(map(len, keys)) > MAX_KEY_BYTES:
            keys = [key if len(key) <= MAX_KEY_BYTES else key[:1_500] + key[-500:] for key in keys]
        known = self._skeletons
        found: list[Shape | None] = list(map(known.get, keys))
        if None in found:
            with self._lock:
                self._fill(found, keys, text)
        shapes: list[Shape] = found  # type: ignore[assignment]
        deciding = {shape for shape in set(shapes) if shape.variants is not None}
        if deciding:
            with self._lock:
                self._tell_apart(shapes, deciding, text)
        return shapes

    def _fill(self, found: list[Shape | None], keys: Sequence[bytes], text: Callable[[int], str]) -> None:
        """Find or make the shapes of lines whose skeleton is not known, in place."""
        known, by_words, word = self._skeletons, self._by_words, self._words.__getitem__
        fresh: list[tuple[Shape, str]] = []
        for index, shape in enumerate(found):
            if shape is not None:
                continue
            key = keys[index]
            one = known.get(key)
            if one is None:
                if len(known) >= MAX_SKELETONS:
                    known.clear()
                line = text(index)
                encoded = (line if len(line) <= MAX_KEY_BYTES else line[:1_500] + line[-500:]).encode(
                    "utf-8", "replace"
                )
                words = tuple(map(word, encoded.translate(_TO_WORDS).split()))
                one = by_words.get(words) or self._new(words, line, fresh)
                known[key] = one
            found[index] = one
        self._read_by_rules(fresh)

    def _new(self, words: tuple[bytes, ...], line: str, fresh: list[tuple[Shape, str]]) -> Shape:
        if not words:
            return self.blank
        full = len(self._by_words)
        if full >= MAX_SHAPES and (full >= 2 * MAX_SHAPES or _TROUBLE.search(line[:MAX_KEY_BYTES]) is None):
            return self.rest
        shape = self._make(line, fresh)
        lower = fresh[-1][1] if fresh else ""
        if any(literal in lower for literal in _NUMERIC_LITERALS) and _numbers(line):
            shape.variants = {_numbers(line): shape}
        self._by_words[words] = shape
        return shape

    def _make(self, line: str, fresh: list[tuple[Shape, str]]) -> Shape:
        parsed = parse(line)
        message = parsed.message
        raw = line if len(line) < signatures.MAX_LINE_CHARS else clip(line, signatures.MAX_LINE_CHARS)
        lower = clean(raw).lower()
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

    def _tell_apart(self, shapes: list[Shape], deciding: set[Shape], text: Callable[[int], str]) -> None:
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
                if len(shape.variants) < MAX_VARIANTS:
                    variant = self._make(line, fresh)
                    shape.variants[numbers] = variant
            shapes[index] = variant
        self._read_by_rules(fresh)


class _Words(dict[bytes, bytes]):
    """A word as it counts for a shape: itself, or `0` if it holds a digit (digits are zeros by then)."""

    def __missing__(self, word: bytes) -> bytes:
        counts = b"0" if b"0" in word or len(word) > 80 else word
        if len(self) < MAX_WORDS_KNOWN:
            self[word] = counts
        return counts


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
    return tuple(
        [
            number if _TELLING.match(number) else "0000" if len(number) > 3 else "1"
            for number in _NUMBER.findall(line[:MAX_KEY_BYTES])
        ]
    )
