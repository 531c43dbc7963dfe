"""A log from a file or a pipe, whole but in bounded memory: block after block, long lines cut."""

from __future__ import annotations

import contextlib
import gzip
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from midwatch.errors import MidwatchError

MAX_LINE_BYTES = 16_384
_BLOCK_BYTES = 1 << 22
_TAIL_BYTES = MAX_LINE_BYTES // 4


@dataclass(slots=True)
class Log:
    """A log that is read once: `blocks` gives it in blocks of whole lines. `cut` counts the lines that were shortened.

    `blank` is True until a line says something.
    """

    stream: IO[bytes]
    cut: int = 0
    blank: bool = True

    @property
    def note(self) -> str:
        """What was left out so far, in words; empty if nothing was."""
        return f"{self.cut} lines longer than {MAX_LINE_BYTES} bytes were cut." if self.cut else ""

    def blocks(self) -> Iterator[bytes]:
        """The log in blocks of whole lines; a line of any length takes bounded memory.

        Raises `MidwatchError` at the end of an empty log, and where one breaks off while it is unpacked.
        """
        rest = b""
        try:
            while block := self.stream.read(_BLOCK_BYTES):
                whole, newline, after = (rest + block).rpartition(b"\n")
                if newline:
                    yield self._bounded(whole + newline)
                rest = after
                if len(rest) > _BLOCK_BYTES:  # a very long line: keep its start and its end, still too long
                    rest = rest[:MAX_LINE_BYTES] + rest[-MAX_LINE_BYTES:]
        except (OSError, EOFError) as error:
            raise MidwatchError(
                f"The log broke off while it was read ({type(error).__name__}: {error}).", "Check the file."
            ) from None
        if rest:
            yield self._bounded(rest)
        if self.blank:
            raise MidwatchError(
                "The log is empty.", "Widen its time range: journalctl -u UNIT --since -1h | midwatch triage -"
            )

    def _bounded(self, block: bytes) -> bytes:
        """A block with its long lines cut."""
        self.blank = self.blank and not block.strip()
        lines = block.split(b"\n")
        if max(map(len, lines)) <= MAX_LINE_BYTES:
            return block
        too_long = [index for index, line in enumerate(lines) if len(line.rstrip(b"\r")) > MAX_LINE_BYTES]
        self.cut += len(too_long)
        for index in too_long:
            line = lines[index].rstrip(b"\r")
            lines[index] = line[: MAX_LINE_BYTES - _TAIL_BYTES] + b" ... " + line[-_TAIL_BYTES:]
        return b"\n".join(lines)


@contextlib.contextmanager
def open_log(name: str) -> Iterator[IO[bytes]]:
    """The bytes of a file (gzip is unpacked) or of standard input for `-`. Raises `MidwatchError`."""
    if name == "-":
        if sys.stdin.isatty():
            raise MidwatchError("No log comes in: `-` reads a pipe.", "Try: journalctl -u nginx | midwatch triage -")
        yield sys.stdin.buffer
        return
    path = Path(name)
    if path.is_dir():
        raise MidwatchError(f"{name} is a folder, not a log.", f"Name a file in it, such as {path / 'app.log'}.")
    with contextlib.ExitStack() as opened:
        try:
            stream = opened.enter_context(path.open("rb"))
            packed = path.is_file() and stream.peek(2)[:2] == b"\x1f\x8b"
        except FileNotFoundError:
            next_step = "Check the path, or pipe a log in: ... | midwatch triage -"
            raise MidwatchError(f"There is no file {name}.", next_step) from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise MidwatchError(f"{name} cannot be read ({why}).", "Check its permissions.") from None
        yield cast("IO[bytes]", opened.enter_context(gzip.open(stream))) if packed else stream
