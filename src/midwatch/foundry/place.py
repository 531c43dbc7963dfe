"""The throw-away place that a program is broken in: a folder, free ports, processes, and everything they printed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from midwatch.errors import FoundryError
from midwatch.foundry.recording import RecordedLine

STOP_S = 10.0
_POLL_S = 0.02
_DRAIN_S = 5.0
_KEPT_ENVIRONMENT = ("PATH", "HOME", "PYENV_ROOT", "JAVA_HOME")


class Place:
    """One place. Lines are kept with the seconds since the place was opened. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._began = time.monotonic()
        self._heard: list[tuple[float, str, str]] = []
        self._news = threading.Condition()
        self._listeners: dict[subprocess.Popen[bytes], threading.Thread] = {}
        self._followers: list[threading.Thread] = []
        self._closed = threading.Event()

    @property
    def now(self) -> float:
        """Seconds since the place was opened."""
        return time.monotonic() - self._began

    def free_port(self) -> int:
        """A TCP port of 127.0.0.1 that nobody listens on now."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return int(listener.getsockname()[1])

    def write(self, name: str, text: str) -> Path:
        """A file of the place, its folders made as needed."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def start(
        self,
        source: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program; what it prints is heard as from `source`. Raises `FoundryError` if it is not installed.

        It sees none of our environment but the path to programs, so a recording is the same on every machine.
        """
        if shutil.which(command[0]) is None:
            raise FoundryError(f"{command[0]} is not installed.", "Install it, or leave its faults out with --program.")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd or self.folder,
            env={
                **{name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
                "LC_ALL": "C.UTF-8",
                "TZ": "UTC",
                "PYTHONUNBUFFERED": "1",
                **(env or {}),
            },
            user=user,
            start_new_session=True,
        )
        listener = threading.Thread(target=self._listen, args=(source, process), daemon=True)
        self._listeners[process] = listener
        listener.start()
        return process

    def run(self, source: str, command: Sequence[str], *, timeout_s: float = 60.0, **options: object) -> int:
        """Run a program to its end; its lines are heard. Returns its exit code; it is killed after `timeout_s`."""
        process = self.start(source, command, **options)  # type: ignore[arg-type]
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            return process.wait()
        finally:
            self._drain(process)

    def note(self, source: str, text: str) -> None:
        """Hear lines that no process of ours prints (a supervisor's or a kernel's own words)."""
        with self._news:
            for line in text.splitlines():
                self._heard.append((self.now, source, line))
            self._news.notify_all()

    def follow(self, source: str, path: Path) -> None:
        """Hear what is appended to a file, from its beginning, until the place is closed."""
        thread = threading.Thread(target=self._tail, args=(source, path), daemon=True)
        self._followers.append(thread)
        thread.start()

    def wait_for(self, pattern: str, *, timeout_s: float = 30.0, source: str | None = None, since: float = 0.0) -> str:
        """The first line heard (at or after `since`) that matches. Raises `FoundryError` if none comes in time."""
        found = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        at = 0
        with self._news:
            while True:
                for moment, who, text in self._heard[at:]:
                    if moment >= since and source in (None, who) and found.search(text):
                        return text
                at = len(self._heard)
                left = deadline - time.monotonic()
                if left <= 0:
                    tail = "; ".join(text for _, _, text in self._heard[-3:])
                    raise FoundryError(f"Nothing like {pattern!r} was printed within {timeout_s:g} s (last: {tail}).")
                self._news.wait(left)

    def wait_until(self, condition: object, *, timeout_s: float = 30.0, what: str = "the condition") -> None:
        """Wait until a call returns true. Raises `FoundryError` if it does not in time."""
        assert callable(condition)
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise FoundryError(f"{what} did not come true within {timeout_s:g} s.")
            time.sleep(_POLL_S)

    def stop(self, process: subprocess.Popen[bytes], *, kill: bool = False) -> int:
        """End a program (SIGTERM, then SIGKILL; at once with `kill`) and return its exit code."""
        if kill:
            _kill(process)
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            _kill(process)
            code = process.wait()
        self._drain(process)
        return code

    def lines(
        self, truth: Sequence[str] = (), *, since: float = 0.0, hide: Mapping[str, str] | None = None
    ) -> tuple[RecordedLine, ...]:
        """Everything heard, in order.

        A line at or after `since` that matches one of the `truth` patterns (as printed, before hiding) shows the cause.
        `hide` maps texts (this place's folder, a test port) to what a real installation would print.
        """
        telling = [re.compile(pattern) for pattern in truth]
        swaps = {**(hide or {}), str(self.folder): (hide or {}).get(str(self.folder), "/srv")}
        with self._news:
            heard = sorted(self._heard, key=lambda item: item[0])
        out: list[RecordedLine] = []
        for moment, who, text in heard:
            shown = text
            for before, after in swaps.items():
                shown = shown.replace(before, after)
            says = moment >= since and any(pattern.search(text) for pattern in telling)
            out.append(RecordedLine(at=moment, source=who, text=shown, truth=says))
        return tuple(out)

    def close(self) -> None:
        """End what still runs, and hear the rest of what was printed."""
        for process in reversed(self._listeners):
            if process.poll() is None:
                _kill(process)
                process.wait()
            self._drain(process)
        self._closed.set()
        for follower in self._followers:
            follower.join()

    def _listen(self, source: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for raw in stream:
                text = raw.decode("utf-8", "replace").rstrip("\r\n")
                with self._news:
                    self._heard.append((self.now, source, text))
                    self._news.notify_all()

    def _tail(self, source: str, path: Path) -> None:
        kept = b""
        at = 0
        while True:
            last = self._closed.wait(_POLL_S)
            if path.exists():
                with path.open("rb") as stream:
                    stream.seek(at)
                    data = stream.read()
                at += len(data)
                *whole, kept = (kept + data).split(b"\n")
                if last and kept:
                    whole.append(kept)
                if whole:
                    self.note(source, "\n".join(line.decode("utf-8", "replace") for line in whole))
            if last:
                return

    def _drain(self, process: subprocess.Popen[bytes]) -> None:
        """Hear the last lines of an ended program. What it left running is ended, because it holds the pipe."""
        _kill(process)
        self._listeners[process].join(_DRAIN_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def open_place(prefix: str = "foundry-") -> Iterator[Place]:
    """A place that is gone afterwards, whatever happened."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    place = Place(folder)
    try:
        yield place
    finally:
        place.close()
        shutil.rmtree(folder, ignore_errors=True)
