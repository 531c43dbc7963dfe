"""A log from a file or a pipe, in bounded memory: its first and its last lines, each cut to a bounded length."""

from __future__ import annotations

import contextlib
import gzip
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from midwatch.errors import MidwatchError

HEAD_LINES = 20_000
TAIL_LINES = 80_000
MAX_LINE_BYTES = 16_384
MAX_TAIL_BYTES = 256 * 1024 * 1024
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Log:
    """The kept lines in order. `skipped` lines are missing after the first `head` ones; `cut` lines were shortened."""

    lines: tuple[str, ...]
    head: int
    skipped: int
    cut: int

    def line_number(self, number: int) -> int:
        """The 1-based number in the whole log of a kept line's 1-based number."""
        return number if number <= self.head else number + self.skipped

    @property
    def note(self) -> str:
        """What was left out, in words; empty if nothing was."""
        parts = []
        if self.skipped:
            parts.append(f"The log is long: {self.skipped} lines in its middle were not read.")
        if self.cut:
            parts.append(f"{self.cut} lines longer than {MAX_LINE_BYTES} bytes were cut.")
        return " ".join(parts)


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


def read_log(stream: IO[bytes]) -> Log:
    """Read to the end. Raises `MidwatchError` for an empty log or one that breaks off while it is unpacked."""
    head: list[str] = []
    tail: deque[bytes] = deque()
    tail_bytes = skipped = cut = 0
    try:
        for raw, was_cut in _lines(stream):
            cut += was_cut
            if len(head) < HEAD_LINES:
                head.append(raw.decode("utf-8", "replace"))
                continue
            tail.append(raw)
            tail_bytes += len(raw)
            while len(tail) > TAIL_LINES or tail_bytes > MAX_TAIL_BYTES:
                tail_bytes -= len(tail.popleft())
                skipped += 1
    except (OSError, EOFError) as error:
        raise MidwatchError(
            f"The log broke off while it was read ({type(error).__name__}: {error}).", "Check the file."
        ) from None
    lines = (*head, *(raw.decode("utf-8", "replace") for raw in tail))
    if not any(line.strip() for line in lines):
        raise MidwatchError(
            "The log is empty.", "Widen its time range: journalctl -u UNIT --since -1h | midwatch triage -"
        )
    return Log(lines=lines, head=len(head), skipped=skipped, cut=cut)


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each line without its end, and whether it was cut; a line of any length takes bounded memory."""
    tail = MAX_LINE_BYTES // 4
    while raw := stream.readline(_CHUNK):
        whole = raw
        while not raw.endswith(b"\n") and len(raw) == _CHUNK:  # a very long line: keep its start and its end
            raw = stream.readline(_CHUNK)
            whole = whole[:_CHUNK] + (whole[_CHUNK:] + raw)[-_CHUNK:]
        whole = whole.rstrip(b"\r\n")
        too_long = len(whole) > MAX_LINE_BYTES
        yield whole[: MAX_LINE_BYTES - tail] + b" ... " + whole[-tail:] if too_long else whole, too_long
