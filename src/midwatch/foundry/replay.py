"""A recording played again for another incident: other names, times, addresses, processes and ids, the same words.

A recorded line is taken apart once (`Tape`), so that playing it is a join of its parts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from midwatch.copilot.parsing import find_level
from midwatch.foundry import times
from midwatch.foundry.names import address
from midwatch.foundry.recording import Recording

SAME_BREATH_S = 0.02
"""A line of no time of its own that comes this soon after one of its source continues it (a stack trace)."""
_LONG_BREATH = 80
_MADE_UP = re.compile(
    r"(?P<uuid>\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b)"
    r"|(?P<hex>\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{12,64}\b)"
    r"|(?P<address>(?<![\d.])(?:127\.0\.0\.1|10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}|172\.(?:1[6-9]|2\d)(?:\.\d{1,3}){2})"
    r"(?![\d./]))"
    r"|(?P<process>(?<=\[)[1-9]\d{1,6}(?=\])|(?<=\bpid )\d{2,7}\b|(?<=\bpid=)\d{2,7}\b|(?<=\bPID )\d{2,7}\b"
    r"|(?<=\b[Pp]rocess )\d{2,7}\b|(?<=\bpid\":)\d{2,7}\b|(?<![\w.])\d{2,7}(?=#\d+: )|(?<=\d#)\d{2,7}(?=: )"
    r"|(?<![\w.])\d{2,7}(?=:[MSCX] \d))"
    r"|(?P<port>(?<=[\w\]]:)[3-6]\d{4}\b|(?<=\bport )[3-6]\d{4}\b|(?<=\bport=)[3-6]\d{4}\b)"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a line that differs from incident to incident. `kind` says how, `at` is the moment it tells, if any."""

    kind: str
    text: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class TapeLine:
    """A recorded line, taken apart. `breath` counts the breaths of the tape (lines that stay together)."""

    at: float
    source: str
    parts: tuple[str | Part, ...]
    truth: bool
    level: str
    breath: int


@dataclass(frozen=True, eq=False)
class Tape:
    """A recording, taken apart. `began` is the moment that its own times tell for its beginning, if they tell one."""

    recording: Recording
    began: float | None
    lines: tuple[TapeLine, ...]


_TAPES: dict[int, tuple[Recording, Tape]] = {}


def tape_of(recording: Recording) -> Tape:
    """The tape of a recording, made at its first use."""
    kept = _TAPES.get(id(recording))
    if kept is None or kept[0] is not recording:
        kept = _TAPES[id(recording)] = (recording, _taken_apart(recording))
    return kept[1]


class Playing:
    """One playing of a tape: what stands for each old name, address, process and id."""

    def __init__(self, tape: Tape, renamed: Mapping[str, str], source: random.Random) -> None:
        self._tape = tape
        self._renamed = renamed
        self._source = source
        self._made: dict[str, str] = {}

    def text(self, line: TapeLine, at: float) -> str:
        """A line as it is said at a moment."""
        shift_s = at - (self._tape.began + line.at) if self._tape.began is not None else 0.0
        return "".join(part if isinstance(part, str) else self._said(part, shift_s) for part in line.parts)

    def _said(self, part: Part, shift_s: float) -> str:
        if part.kind == "name":
            return self._renamed.get(part.text, part.text)
        if part.kind[0] == "@":
            return times.written(part.kind[1:], part.text, part.at + shift_s)
        made = self._made.get(part.text)
        if made is None:
            made = self._made[part.text] = self._draw(part)
        return made

    def _draw(self, part: Part) -> str:
        source = self._source
        if part.kind == "address":
            return address(source)
        if part.kind == "process":
            return str(source.randint(2, 65_000))
        if part.kind == "port":
            return str(source.randint(32_768, 60_999))
        return re.sub("[0-9a-f]", lambda _: source.choice("0123456789abcdef"), part.text)


def named_parts(text: str, names: tuple[str, ...]) -> list[str | Part]:
    """A text cut at the names in it, where they stand as whole words (no letter or digit before or after)."""
    finder = _name_finder(names)
    return [text] if finder is None else _cut(text, finder, "name")


def _taken_apart(recording: Recording) -> Tape:
    began = times.began_at(iter((line.at, line.text) for line in recording.lines))
    finder = _name_finder(tuple(sorted(recording.names)))
    lines: list[TapeLine] = []
    last: dict[str, TapeLine] = {}
    for number, line in enumerate(recording.lines):
        parts = _parts(line.text, finder, None if began is None else began + line.at)
        before = last.get(line.source)
        goes_on = before is not None and line.at - before.at <= SAME_BREATH_S and not _begins(line.text, parts)
        breath = before.breath if before is not None and goes_on and number - before.breath < _LONG_BREATH else number
        made = TapeLine(line.at, line.source, parts, line.truth, find_level(line.text), breath)
        last[line.source] = made
        lines.append(made)
    return Tape(recording, began, tuple(lines))


def _begins(text: str, parts: tuple[str | Part, ...]) -> bool:
    """Whether a line begins something: it tells a time near its start, or is an object."""
    early = any(isinstance(part, Part) and part.kind[0] == "@" for part in parts[:3])
    return text[:1] not in " \t" and (early or text[:1] == "{")


def _parts(text: str, names: re.Pattern[str] | None, said_at: float | None) -> tuple[str | Part, ...]:
    """A line as texts and parts: first the moments, then the names between them, then ids between those."""
    whole: list[str | Part] = [text]
    if said_at is not None:
        whole = list(times.split(text, said_at, lambda kind, old, at: Part("@" + kind, old, at)))
    if names is not None:
        whole = [piece for item in whole for piece in _cut(item, names, "name")]
    return tuple(piece for item in whole for piece in _cut(item, _MADE_UP, None))


def _cut(item: str | Part, finder: re.Pattern[str], kind: str | None) -> list[str | Part]:
    if isinstance(item, Part):
        return [item]
    pieces: list[str | Part] = []
    end = 0
    for found in finder.finditer(item):
        pieces += [item[end : found.start()], Part(kind or found.lastgroup or "", found[0])]
        end = found.end()
    pieces.append(item[end:])
    return [piece for piece in pieces if piece]


@lru_cache(maxsize=512)
def _name_finder(names: tuple[str, ...]) -> re.Pattern[str] | None:
    if not names:
        return None
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{longest_first})(?![A-Za-z0-9])")
