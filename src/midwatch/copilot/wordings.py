"""What do we know of this kind of line already? A store of line shapes, so that a line seen before costs no parsing.

A line's skeleton is the line without its digits; all skeletons of a log come from one translation of its bytes, and a
skeleton seen before is one look in a dictionary. A line that is new but for an identifier is found without its hex
digits, provided that the words which this may confuse (`added`, `dead`) stand in it; else by its words, those with
digits in them taken as equal. Only a line that is new in its words is parsed, mined into a template and read by the
signature rules, once for all the logs that a service will send.

A store is bounded, whatever comes: a log adds `MAX_NEW_SHAPES` and then only lines that speak of trouble, and a store
that is full begins anew with the next log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from midwatch.copilot import signatures
from midwatch.copilot.shapes import Shape, decided_by_numbers, numbers_of, shape_of
from midwatch.copilot.templates import Miner

MAX_SHAPES = 20_000
MAX_NEW_SHAPES = 15_000
"""Shapes that one log may add; a third more if their lines speak of trouble."""
MAX_SKELETONS = 100_000
MAX_LEARNED = 0.25
MIN_LEARNED = 1_000
"""Skeletons learned from a part of a log: so many, and such a share of its lines. More are lines with identifiers."""
MAX_WORDS_KNOWN = 100_000
MAX_VARIANTS = 64
MAX_AMBIGUOUS = 3
"""A word of which more letters are left is not taken for another one."""
MAX_KEY_BYTES = 2_000
"""A longer line is known by its start and its end."""

_DIGITS = b"0123456789"
_HEX = b"0123456789abcdefABCDEF-"
_DELIMITERS = b"\"',:;{}[]()=|<>&\t\r"
_TO_WORDS = bytes(48 if code in _DIGITS else 32 if code in _DELIMITERS else code for code in range(256))
_MAYBE_TROUBLE = (
    *("err", "fail", "fatal", "panic", "excep", "refus", "denied", "time", "unable", "cannot", "not ", "kill", "lost"),
)
"""One of these a line must hold to be told apart once a log has filled its room."""


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
        self._hexless: dict[bytes, tuple[Shape, tuple[str, ...]]] = {}
        self._by_words: dict[tuple[bytes, ...], Shape] = {}
        self._words = _Words()
        self._settled = 0
        self._blank = Shape(self.miner.add(""), noise=True)
        self._rest = Shape(self.miner.add("(more lines, all different)"), noise=True)

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
            keys = list(map(_cut, keys))
        found: list[Shape | None] = list(map(self._skeletons.get, keys))
        unknown = [index for index, shape in enumerate(found) if shape is None]
        if unknown:
            with self._lock:
                self._fill(found, unknown, keys, raw.split(b"\n"), text, room)
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
        lines: Sequence[bytes],
        text: Callable[[int], str],
        room: Room,
    ) -> None:
        """Find or make the shapes of lines whose skeleton is not known, in place."""
        known, hexless, by_words, word = self._skeletons, self._hexless, self._by_words, self._words.__getitem__
        fresh: list[tuple[Shape, str]] = []
        learnable = int(MAX_LEARNED * len(found)) + MIN_LEARNED
        for index in unknown:
            shape = known.get(keys[index])
            if shape is None:
                line = _cut(lines[index])
                bare = line.translate(None, _HEX)
                like = hexless.get(bare)
                if like is not None and all(map(text(index).__contains__, like[1])):
                    shape = like[0]
                else:
                    words = tuple(map(word, line.translate(_TO_WORDS).split()))
                    shape = by_words.get(words) or self._new(words, text(index), fresh, room)
                    if shape is not self._rest:
                        hexless[bare] = (shape, _ambiguous(words))
                learnable -= 1
                if learnable > 0:
                    known[keys[index]] = shape
            found[index] = shape
        if len(known) > MAX_SKELETONS:
            known.clear()
        if len(hexless) > MAX_SKELETONS:
            hexless.clear()
        self._read_by_rules(fresh)

    def _new(self, words: tuple[bytes, ...], line: str, fresh: list[tuple[Shape, str]], room: Room) -> Shape:
        if not words:
            return self._blank
        room.taken += 1
        if room.taken > MAX_NEW_SHAPES:
            lower = line[:MAX_KEY_BYTES].lower()
            if room.taken_by_trouble >= MAX_NEW_SHAPES // 3 or not any(word in lower for word in _MAYBE_TROUBLE):
                return self._rest
            room.taken_by_trouble += 1
        shape, lower = shape_of(line, self.miner)
        fresh.append((shape, lower))
        if decided_by_numbers(lower):
            numbers = numbers_of(line)
            shape.variants = {numbers: shape} if numbers else None
        self._by_words[words] = shape
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
            numbers = numbers_of(line)
            variant = shape.variants.get(numbers)
            if variant is None:
                variant = shape
                if len(shape.variants) < MAX_VARIANTS and room.taken < MAX_NEW_SHAPES:
                    room.taken += 1
                    variant, lower = shape_of(line, self.miner)
                    fresh.append((variant, lower))
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


def _ambiguous(words: Sequence[bytes]) -> tuple[str, ...]:
    """Words of which so little is left without their hex digits that other words look the same."""
    return tuple(
        word.decode("utf-8", "replace")
        for word in words
        if word != b"0" and len(bare := word.translate(None, _HEX)) <= MAX_AMBIGUOUS and bare != word
    )


def _cut(line: bytes) -> bytes:
    return line if len(line) <= MAX_KEY_BYTES else line[:1_500] + line[-500:]
