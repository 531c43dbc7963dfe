"""The stage of a recording: start programs, collect their lines in order, wait for conditions, end everything."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from recorder import house
from recorder.incident import RecordError

_PROGRAMS = Path(__file__).parents[1] / "shop"
MAX_LINE = 2000
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "HOME": "/srv/shop",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": "/srv/shop/lib",
}


@dataclass(frozen=True, kw_only=True)
class Collected:
    """One line as a collector saw it: nanoseconds since the epoch, the program's name and process id (0: kernel)."""

    at_ns: int
    program: str
    pid: int
    text: str

    def line(self) -> str:
        """The line in syslog's ISO form: time, host, program[pid], message."""
        at = datetime.fromtimestamp(self.at_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        tag = f"{self.program}[{self.pid}]" if self.pid else self.program
        return f"{at}Z {house.HOST} {tag}: {self.text}"


class Stage:
    """Programs under one roof. Use as a context manager: leaving it stops every program, whatever happened."""

    def __init__(self) -> None:
        self.root = house.SRV / "shop"
        self.versions: dict[str, str] = {}
        self.alert_at: datetime | None = None
        self._lines: list[Collected] = []
        self._programs: list[subprocess.Popen[bytes]] = []
        self._changed = threading.Condition()
        self._recording = False
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        self.root.mkdir()
        shutil.copytree(_PROGRAMS, self.root / "lib" / "shop", ignore=shutil.ignore_patterns("__pycache__"))
        self.versions["python"] = self.output([house.find("python3"), "-V"]).split()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self._recording = False
        self._undo.close()
        for program in reversed(self._programs):
            self.stop(program)

    def folder(self, name: str, *, owner: str | None = None) -> Path:
        """A new folder /srv/shop/NAME."""
        path = self.root / name
        path.mkdir(parents=True)
        if owner:
            shutil.chown(path, owner, owner)
        return path

    def output(self, argv: list[str], *, user: str | None = None) -> str:
        """Run a program to its end and give what it printed. Raises `RecordError` with its words if it fails."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                cwd=self.root,
                env=ENVIRONMENT,
                timeout=120,
                user=user,
                group=user,
            )
        except subprocess.TimeoutExpired:
            raise RecordError(f"{Path(argv[0]).name} did not end in 120 s.") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise RecordError(f"{Path(argv[0]).name} failed ({done.returncode}): {said}")
        return done.stdout + done.stderr

    def start(
        self,
        name: str,
        argv: list[str],
        *,
        user: str | None = None,
        env: dict[str, str] | None = None,
        collect: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a program in /srv/shop; its stdout and stderr are collected under `name`."""
        process = subprocess.Popen(
            argv,
            cwd=self.root,
            env=ENVIRONMENT | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=user,
        )
        self._programs.append(process)
        threading.Thread(target=self._collect, args=(name, process, collect), daemon=True).start()
        return process

    def shop(self, file: str) -> str:
        """Path inside the house of a file of demo/shop."""
        return str(self.root / "lib" / "shop" / file)

    def python(
        self, script: str, *arguments: str, name: str | None = None, collect: bool = True
    ) -> subprocess.Popen[bytes]:
        """Start one of the shop's own programs, demo/shop/SCRIPT.py."""
        argv = [house.find("python3"), self.shop(f"{script}.py"), *arguments]
        return self.start(name or script.replace("_", "-"), argv, collect=collect)

    def _collect(self, name: str, process: subprocess.Popen[bytes], collect: bool) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            if collect:
                self.add(name, process.pid, raw.decode("utf-8", "replace").rstrip("\r\n"))

    def add(self, program: str, pid: int, text: str) -> None:
        """Take one line in, at the time now; times never repeat, so that their order is the order of arrival."""
        with self._changed:
            at_ns = time.time_ns() // 1000 * 1000
            if self._lines:
                at_ns = max(at_ns, self._lines[-1].at_ns + 1000)
            self._lines.append(Collected(at_ns=at_ns, program=program, pid=pid, text=text[:MAX_LINE]))
            self._changed.notify_all()

    def begin(self) -> None:
        """Setup is over: what was printed until now is not part of the recording."""
        with self._changed:
            self._lines.clear()

    def lines(self) -> list[Collected]:
        """Every line until now, in order, without blank ones."""
        with self._changed:
            return [line for line in self._lines if line.text.strip()]

    def wait_for(self, program: str, pattern: str, *, count: int = 1, timeout_s: float = 60.0) -> None:
        """Block until `program` has printed `count` lines that match. Raises `RecordError` at the deadline."""
        regex = re.compile(pattern)

        def enough() -> bool:
            found = sum(1 for line in self._lines if line.program == program and regex.search(line.text))
            return found >= count

        with self._changed:
            if not self._changed.wait_for(enough, timeout=timeout_s):
                tail = "\n  ".join(line.line() for line in self._lines[-15:])
                what = f"{program} did not print {pattern!r} {count} times in {timeout_s:.0f} s"
                raise RecordError(f"{what}. Last lines:\n  {tail}")

    def wait_lines(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Block until `count` lines in all have been collected. Raises `RecordError` at the deadline."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._lines) >= count, timeout=timeout_s):
                raise RecordError(f"Only {len(self._lines)} of {count} lines came in {timeout_s:.0f} s.")

    def wait_port(self, host: str, port: int, *, timeout_s: float = 30.0) -> None:
        """Block until something listens there. Raises `RecordError` at the deadline."""
        deadline = time.monotonic() + timeout_s
        pace = threading.Event()
        while True:
            try:
                socket.create_connection((host, port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RecordError(f"Nothing listened on {host}:{port} in {timeout_s:.0f} s.") from None
                pace.wait(0.05)

    def fire(self) -> None:
        """The alert's condition holds from now on."""
        self.alert_at = datetime.now(UTC)

    def stop(
        self, process: subprocess.Popen[bytes], *, with_signal: int = signal.SIGTERM, timeout_s: float = 10
    ) -> None:
        """End a program and what it started: ask first, then kill."""
        for number, patience in ((with_signal, timeout_s), (signal.SIGKILL, timeout_s)):
            if process.poll() is not None and number != signal.SIGKILL:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return

    def on_exit(self, undo: Callable[[], object]) -> None:
        """Call `undo` when the stage closes, before the programs are stopped."""
        self._undo.callback(undo)

    @contextlib.contextmanager
    def traffic(
        self, request: Callable[[random.Random], None], *, seed: int, rate_per_s: float, clients: int = 3
    ) -> Iterator[None]:
        """Customers: each of `clients` calls `request` at random moments, `rate_per_s` in all, until the block ends."""
        closing = threading.Event()

        def customer(number: int) -> None:
            rng = random.Random(seed * 100 + number)
            while not closing.wait(rng.expovariate(rate_per_s / clients)):
                with contextlib.suppress(OSError):
                    request(rng)

        threads = [threading.Thread(target=customer, args=(number,), daemon=True) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            closing.set()
            for thread in threads:
                thread.join(timeout=15)
