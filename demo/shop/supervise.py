"""Keeps one worker running: starts it, and starts it again when it ends. With a cgroup, the worker lives in it."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
from pathlib import Path

from shop import service


def main() -> None:
    """Run the command until stopped; back off a little more each time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--cgroup", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    log = service.logger("supervisor")

    # The shell joins the group and becomes the worker, so that all of the worker's memory is counted.
    join = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(asked.cgroup / "cgroup.procs")] if asked.cgroup else []

    stopping = threading.Event()
    worker: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        stopping.set()
        if worker:
            worker.terminate()

    signal.signal(signal.SIGTERM, stop)
    restarts = 0
    while not stopping.is_set():
        worker = subprocess.Popen([*join, *asked.command])
        log.info("%s started, pid %d", asked.name, worker.pid)
        status = worker.wait()
        code = 128 - status if status < 0 else status
        if stopping.is_set():
            sys.exit(0)
        restarts += 1
        log.error("%s (pid %d) exited with code %d, restart %d in 1 s", asked.name, worker.pid, code, restarts)
        stopping.wait(1)


if __name__ == "__main__":
    main()
