"""A supervisor of our own: it starts a program, looks after it, and says so in the words of one of several kinds."""

# ruff: noqa: E501 - a line that is printed is a line here
from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from midwatch.foundry.place import Place
from midwatch.foundry.props import ask

STYLES: dict[str, dict[str, str]] = {
    "supervisord": {
        "started": "{comma} INFO spawned: '{name}' with pid {pid}",
        "exited": "{comma} WARN exited: {name} (exit status {code}; not expected)",
        "killed": "{comma} WARN exited: {name} (terminated by {signal}; not expected)",
        "stopping": "{comma} INFO waiting for {name} to stop",
        "again": "{comma} INFO backoff: {name} restart {count}",
        "gave_up": "{comma} INFO gave up: {name} entered FATAL state, too many start retries too quickly",
        "probe": "{comma} WARN {name}: health check failed ({why}), attempt {count}",
        "probe_kill": "{comma} WARN {name}: {count} health checks failed in a row, restarting",
    },
    "kubelet": {
        "started": "I{klog}    1287 kubelet.go:2447] Started container {name} in pod {name}-{hash}",
        "exited": "E{klog}    1287 pod_workers.go:1298] container {name} in pod {name}-{hash} exited with code {code}",
        "killed": "E{klog}    1287 pod_workers.go:1298] container {name} in pod {name}-{hash} exited with code {code} ({signal})",
        "stopping": "I{klog}    1287 kuberuntime_container.go:779] Killing container {name} with a grace period of 30 s",
        "again": "W{klog}    1287 pod_workers.go:1298] Back-off {delay}s restarting failed container={name} pod={name}-{hash}",
        "gave_up": "E{klog}    1287 pod_workers.go:1298] CrashLoopBackOff: back-off 5m0s restarting failed container={name}",
        "probe": "W{klog}    1287 prober.go:107] Liveness probe failed: {why} pod={name}-{hash}",
        "probe_kill": "I{klog}    1287 kubelet.go:2531] Container {name} failed liveness probe, will be restarted",
    },
    "keeper": {
        "started": "{iso} keeper: {name} started, pid {pid}",
        "exited": "{iso} keeper: {name} exited with status {code}",
        "killed": "{iso} keeper: {name} was ended by {signal}",
        "stopping": "{iso} keeper: stopping {name}",
        "again": "{iso} keeper: restarting {name} in {delay} s (restart {count})",
        "gave_up": "{iso} keeper: {name} failed {count} times, giving up",
        "probe": "{iso} keeper: health check of {name} failed: {why} ({count}/3)",
        "probe_kill": "{iso} keeper: {name} is unhealthy, sending SIGTERM",
    },
    "pm2": {
        "started": "PM2      | {iso}: PM2 log: App [{name}:0] online",
        "exited": "PM2      | {iso}: PM2 log: App [{name}:0] exited with code [{code}] via signal [SIGINT]",
        "killed": "PM2      | {iso}: PM2 log: App [{name}:0] exited with code [0] via signal [{signal}]",
        "stopping": "PM2      | {iso}: PM2 log: Stopping app:{name} id:0",
        "again": "PM2      | {iso}: PM2 log: App [{name}:0] starting in -fork mode-",
        "gave_up": 'PM2      | {iso}: PM2 log: Script {name} had too many unstable restarts ({count}). Stopped. "errored"',
        "probe": "PM2      | {iso}: PM2 health: {name} did not pass ({why})",
        "probe_kill": "PM2      | {iso}: PM2 health: restarting {name} after {count} failed checks",
    },
}
"""What each kind of supervisor prints."""
_SIGNALS = {-9: "SIGKILL", -11: "SIGSEGV", -6: "SIGABRT", -15: "SIGTERM"}


@dataclass(kw_only=True)
class Supervisor:
    """Looks after one program of a place. `probe` is a path, `probe_port` where it asks if the program is not there."""

    place: Place
    rng: random.Random
    name: str
    style: str
    start: Callable[[], subprocess.Popen[bytes]]
    probe_port: int = 0
    probe: str = "/healthz"
    probe_timeout_s: float = 0.3
    hash: str = ""

    def __post_init__(self) -> None:
        self.hash = f"{self.rng.randrange(16**9):09x}-{self.rng.randrange(16**5):05x}"

    def say(self, key: str, **slots: object) -> None:
        """Print a line in the supervisor's words."""
        now = time.time()
        local, thousandths = time.gmtime(now), int(now % 1 * 1000)
        stamps = {
            "comma": f"{time.strftime('%Y-%m-%d %H:%M:%S', local)},{thousandths:03d}",
            "iso": f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{thousandths:03d}Z",
            "klog": f"{time.strftime('%m%d %H:%M:%S', local)}.{thousandths:03d}{self.rng.randrange(1000):03d}",
        }
        text = STYLES[self.style][key].format(name=self.name, hash=self.hash, **stamps, **slots)
        self.place.note("supervisor" if self.style != "kubelet" else "kubelet", text)

    def crash_loop(self, times: int, *, lives_s: float = 20.0) -> None:
        """Start the program again and again while it ends badly; in the end give up (or not, by chance)."""
        for count in range(1, times + 1):
            process = self.start()
            self.say("started", pid=process.pid)
            try:
                code = process.wait(lives_s)
            except subprocess.TimeoutExpired:
                self.place.stop(process)
                return
            self.place.stop(process)
            self.died(code)
            if count < times:
                self.say("again", count=count, delay=10 * 2 ** (count - 1))
        if self.rng.random() < 0.6:
            self.say("gave_up", count=times)

    def died(self, code: int) -> None:
        """Say how the program ended."""
        if code < 0:
            self.say("killed", code=128 - code, signal=_SIGNALS.get(code, f"signal {-code}"))
        else:
            self.say("exited", code=code)

    def probing(
        self, process: subprocess.Popen[bytes], why: str, *, port: int, failures: int = 3, pause_s: float = 0.3
    ) -> bool:
        """Probe until it failed so many times in a row, then stop the program. False if it passes instead.

        `why` is what is said of a probe that nothing answered.
        """
        for count in range(1, failures + 1):
            status = ask(self.probe_port or port, self.probe, timeout_s=self.probe_timeout_s)
            if 200 <= status < 400:
                return False
            self.say("probe", why=f"HTTP probe failed with statuscode: {status}" if status else why, count=count)
            if count < failures:
                time.sleep(pause_s)
        self.say("probe_kill", count=failures)
        self.say("stopping")
        self.died(self.place.stop(process))
        return True
