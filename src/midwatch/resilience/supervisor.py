"""Keep a few child processes alive: start them, wait until they are healthy, restart the one that crashes or hangs.

A child is restarted with exponential backoff (reset once it has stayed up), stopped with SIGTERM and, after a grace
time, SIGKILL. Each child is told by the kernel to end when the supervisor dies, so that `kill -9` leaves no orphan that
holds a port (Linux; elsewhere an orphan has to be stopped by hand).

This is not an init system: no dependencies between children, no log files, no privileges.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to run and how to know that it is well. `health_url` answers 200 when the child can serve."""

    name: str
    argv: tuple[str, ...]
    health_url: str


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When a child counts as hung, how soon it is started again, and how long it may take to stop. Seconds."""

    probe_every_s: float = 0.1
    steady_probe_every_s: float = 1.0
    probe_timeout_s: float = 5.0
    hung_after_s: float = 30.0
    startup_limit_s: float = 180.0
    backoff_s: float = 0.5
    backoff_max_s: float = 15.0
    steady_after_s: float = 30.0
    stop_grace_s: float = 10.0


class Supervisor:
    """Runs children until `stop()`. `report` receives one sentence per change of a child's state."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        report: Callable[[str], None],
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = [_Child(spec, report, policy or Policy(), clock) for spec in specs]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Supervisor:
        self._tasks = [asyncio.create_task(child.keep_alive(), name=child.spec.name) for child in self._children]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def ready(self) -> None:
        """Return once every child has been healthy at least once since its last start."""
        await asyncio.gather(*(child.healthy.wait() for child in self._children))

    def pids(self) -> dict[str, int | None]:
        """The process id of each child, None while it is down."""
        return {child.spec.name: child.process.pid if child.process else None for child in self._children}

    async def stop(self) -> None:
        """Stop every child, politely first. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


class _Child:
    def __init__(
        self,
        spec: ChildSpec,
        report: Callable[[str], None],
        policy: Policy,
        clock: Callable[[], float],
    ) -> None:
        self.spec = spec
        self.healthy = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self._report = report
        self._policy = policy
        self._clock = clock

    async def keep_alive(self) -> None:
        backoff_s = self._policy.backoff_s
        while True:
            started = self._clock()
            why = await self._run_once()
            if self._clock() - started >= self._policy.steady_after_s:
                backoff_s = self._policy.backoff_s
            self._report(f"{self.spec.name} {why}; starting it again in {backoff_s:g} s")
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, self._policy.backoff_max_s)

    async def _run_once(self) -> str:
        """Start the child and stay until it ends or hangs; say why in words."""
        self.process = await asyncio.create_subprocess_exec(
            *self.spec.argv,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        exited = asyncio.create_task(self.process.wait())
        hung = asyncio.create_task(self._until_hung())
        try:
            await asyncio.wait({exited, hung}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return f"ended with {_exit_words(exited.result())}"
            return hung.result()
        finally:
            self.healthy.clear()
            hung.cancel()
            await asyncio.gather(hung, return_exceptions=True)
            await self._stop_process(exited)

    async def _until_hung(self) -> str:
        """Probe the child's health; return once it has been unwell for too long."""
        policy = self._policy
        last_well = self._clock()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=policy.probe_timeout_s)) as session:
            while True:
                if await self._probe(session):
                    last_well = self._clock()
                    if not self.healthy.is_set():
                        self.healthy.set()
                        self._report(f"{self.spec.name} is ready")
                limit_s = policy.hung_after_s if self.healthy.is_set() else policy.startup_limit_s
                if self._clock() - last_well > limit_s:
                    return f"has not been well for {limit_s:g} s"
                await asyncio.sleep(policy.steady_probe_every_s if self.healthy.is_set() else policy.probe_every_s)

    async def _probe(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(self.spec.health_url) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _stop_process(self, exited: asyncio.Task[int]) -> None:
        process = self.process
        self.process = None
        if process is None or exited.done():
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(exited), self._policy.stop_grace_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await exited


def _exit_words(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when our parent dies (runs in the child, between fork and exec)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
