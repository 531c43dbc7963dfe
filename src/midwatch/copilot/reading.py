# ruff: noqa: E501 - a pattern is easier to read on one line
"""What is in this log? One reading of it, in chunks and in bounded memory, into a digest.

For each shape of line: how often, where first and last, and the text of its first line. Of lines that may matter (a
severe level, a signature, an exception) also the lines around them and the frame of the trace that is the program's
own. A log in memory is one chunk; a file of any size is read once, a chunk at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from midwatch.copilot.parsing import clip
from midwatch.copilot.wordings import Room, Shape, TemplateStore

CHUNK_LINES = 20_000
MAX_KEPT_CHARS = 2_000
"""Longest text that is kept of a line; a longer one keeps its start and its end."""
MAX_KEPT_LINES = 40_000
MAX_KEPT_TEXT = 16_000_000
"""Characters of all kept lines; lines that may matter are kept up to twice as many."""
MAX_CHUNK_BYTES = 8_000_000
AROUND = 2
"""Lines that are kept before and after one that may matter."""
BEFORE_END = 16
"""Lines that are kept before the first error that a build server gives."""
MAX_TRACE_LINES = 120

_FOREIGN = re.compile(
    r"site-packages|dist-packages|/usr/lib/|/usr/local/(?:lib|go)/|lib/python\d|node_modules|node:|<frozen |<anonymous>"
    r"|\bat (?:java|javax|jdk|sun|com\.sun|org\.(?:springframework|apache|hibernate|junit|gradle|eclipse)|kotlin|scala|io\.netty|System|Microsoft)\."
    r"|/go/pkg/mod/|/rustc/|/\.cargo/|internal/(?:process|modules|timers)|runtime/(?:panic|debug|proc)|/gems/"
)
_GO_FILE = re.compile(r"^\s*/\S{1,300}\.go:\d+")
_FUNCTION = re.compile(r"^(?:goroutine \d+ |[\w./*()]+\(.{0,200}\)$|\s{2,}\S)")


@dataclass(slots=True)
class Seen:
    """Lines of one shape in one log. `first` and `last` are 0-based places of lines."""

    shape: Shape
    count: int
    first: int
    last: int


@dataclass(slots=True)
class Digest:
    """A log that was read. `texts` and `shape_at` hold the lines that were kept, by their place."""

    seen: dict[Shape, Seen] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    shape_at: dict[int, Shape] = field(default_factory=dict)
    frames: dict[int, int] = field(default_factory=dict)
    """Place of a trace's exception line, and of the innermost frame that is the program's own."""
    total: int = 0


class Reader:
    """Reads a log into a digest: `feed` lines in order, as often as needed."""

    def __init__(self, store: TemplateStore) -> None:
        store.begin()
        self.digest = Digest()
        self._store = store
        self._room = Room()
        self._kept = 0

    def feed(self, lines: Sequence[str]) -> None:
        """Read further lines of the log."""
        raw = "\n".join(lines).encode("utf-8", "replace")
        if raw.count(b"\n") + 1 != len(lines):
            lines = [line.replace("\n", " ") for line in lines]
            raw = "\n".join(lines).encode("utf-8", "replace")
        if lines:
            self._note(self._store.shapes(raw, len(lines), lines.__getitem__, self._room), lines.__getitem__)

    def feed_bytes(self, lines: Sequence[bytes]) -> None:
        """Read further lines, none of which holds a newline, as a file has them."""

        def text(index: int) -> str:
            return lines[index].rstrip(b"\r").decode("utf-8", "replace")

        if lines:
            self._note(self._store.shapes(b"\n".join(lines), len(lines), text, self._room), text)

    def _note(self, shapes: list[Shape], text: Callable[[int], str]) -> None:
        digest, start, end = self.digest, self.digest.total, len(shapes)
        counts = Counter(shapes)
        first = dict(zip(reversed(shapes), range(end - 1, -1, -1), strict=True))
        last = dict(zip(shapes, range(end), strict=True))
        for shape, count in counts.items():
            shape.wording.count += count
            known = digest.seen.get(shape)
            if known is not None:
                known.count += count
                if shape.change and known.last != known.first:
                    self._forget(known.last)
                known.last = start + last[shape]
                if shape.change:
                    self._keep(last[shape], shapes, text)
                continue
            place = first[shape]
            digest.seen[shape] = Seen(shape, count, start + place, start + last[shape])
            share = 2 if matters(shape) else 1
            self._keep(place, shapes, text, share)
            if shape.change:
                self._keep(last[shape], shapes, text)
            if share == 2:
                before = BEFORE_END if shape.end_of_build else AROUND
                for near in range(max(place - before, 0), min(place + AROUND + 1, end)):
                    self._keep(near, shapes, text, share)
                if shape.exception or shape.frame:
                    self._keep_own_frame(place, shapes, text)
        digest.total = start + end

    def _keep(self, place: int, shapes: list[Shape], text: Callable[[int], str], share: int = 1) -> None:
        """Keep a line, unless so much is kept already; `share` 2 lets a line in that may matter."""
        digest, at = self.digest, self.digest.total + place
        full = len(digest.texts) >= share * MAX_KEPT_LINES or self._kept >= share * MAX_KEPT_TEXT
        if at in digest.texts or full:
            return
        kept = clip(text(place), MAX_KEPT_CHARS)
        self._kept += len(kept)
        digest.texts[at] = kept
        digest.shape_at[at] = shapes[place]

    def _forget(self, at: int) -> None:
        self._kept -= len(self.digest.texts.pop(at, ""))
        self.digest.shape_at.pop(at, None)

    def _keep_own_frame(self, place: int, shapes: list[Shape], text: Callable[[int], str]) -> None:
        """Find the innermost own frame of the trace whose exception stands at `place`."""
        if not shapes[place].exception:
            return
        below = _own_frame(range(place + 1, min(place + MAX_TRACE_LINES, len(shapes))), shapes, text)
        above = _own_frame(range(place - 1, max(place - MAX_TRACE_LINES, -1), -1), shapes, text)
        frame = below if below is not None else above
        if frame is not None:
            self._keep(frame, shapes, text, 2)
            self.digest.frames[self.digest.total + place] = self.digest.total + frame


def read(lines: Sequence[str], store: TemplateStore) -> Digest:
    """The digest of a log in memory."""
    reader = Reader(store)
    for start in range(0, len(lines), CHUNK_LINES * 10):
        reader.feed(lines[start : start + CHUNK_LINES * 10])
    return reader.digest


def read_stream(blocks: Iterable[bytes], store: TemplateStore) -> Digest:
    """The digest of a log that comes in blocks of whole lines (a file object gives one line a block).

    Memory stays bounded whatever the log's length. A block that does not end with a newline ends its last line.
    """
    reader = Reader(store)
    pending: list[bytes] = []
    size = 0
    for block in blocks:
        pending.append(block if block.endswith(b"\n") else block + b"\n")
        size += len(block)
        if size >= MAX_CHUNK_BYTES or len(pending) >= CHUNK_LINES:
            reader.feed_bytes(b"".join(pending)[:-1].split(b"\n"))
            pending, size = [], 0
    if pending:
        reader.feed_bytes(b"".join(pending)[:-1].split(b"\n"))
    return reader.digest


def matters(shape: Shape) -> bool:
    """Whether a line of this shape may be one that a person needs to see."""
    return bool(shape.hits) or shape.exception or shape.level in ("warning", "error", "critical") or shape.end_of_build


def _own_frame(places: Iterable[int], shapes: list[Shape], text: Callable[[int], str]) -> int | None:
    """The first frame of a trace, in the order of `places`, that is not a library's; else the first frame."""
    innermost: int | None = None
    between = 0
    for place in places:
        if shapes[place].frame:
            line = text(place)
            if _FOREIGN.search(line[:400]) is None:
                return place
            innermost = place if innermost is None else innermost
            between = 0
        else:
            between += 1
            if between > 2 or (between > 1 and not _FUNCTION.match(text(place)[:300])):
                break
    return innermost
