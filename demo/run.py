"""`make demo`: put Midwatch on watch with an empty store, replay the recorded incidents over HTTP, leave the page up.

Everything the demo writes lies in `.demo/`, which is emptied first. `--once` ends the watch after the replay.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY_LIMIT_S = 120


def free_port(preferred: int) -> int:
    """`preferred` where nobody listens, else a port that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise SystemExit("No free port on 127.0.0.1.")


def wait_ready(watch: subprocess.Popen[bytes], urls: list[str]) -> None:
    """Return when every URL answers 200; stop with a sentence when the watch ends or the limit passes."""
    deadline = time.monotonic() + READY_LIMIT_S
    waiting = list(urls)
    while waiting:
        if watch.poll() is not None:
            raise SystemExit(f"midwatch up ended with exit code {watch.returncode}; its last lines above say why.")
        if time.monotonic() > deadline:
            raise SystemExit(f"{waiting[0]} was not ready within {READY_LIMIT_S} s.")
        try:
            with urllib.request.urlopen(waiting[0], timeout=2):
                waiting.pop(0)
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)


def main() -> int:
    """Run the demo; the exit code is the replay's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="end the watch after the replay")
    parser.add_argument(
        "--started", type=float, default=time.time(), help="when the whole began, seconds since the epoch"
    )
    arguments = parser.parse_args()

    state = ROOT / ".demo"
    shutil.rmtree(state, ignore_errors=True)
    page_port, engine_port = free_port(8010), free_port(8011)
    page = f"http://127.0.0.1:{page_port}"
    environment = {**os.environ, "MIDWATCH_STATE_DIR": str(state)}
    up = [sys.executable, "-m", "midwatch", "up", "--port", str(page_port), "--engine-port", str(engine_port)]
    with subprocess.Popen(up, env=environment) as watch:
        try:
            wait_ready(watch, [f"{page}/healthz", f"http://127.0.0.1:{engine_port}/health"])
            replay = [sys.executable, str(ROOT / "demo" / "replay.py"), "--app", page]
            stay = ["--once"] if arguments.once else []
            code = subprocess.run([*replay, "--since", str(arguments.started), *stay], check=False).returncode
        except KeyboardInterrupt:
            code = 0
        finally:
            watch.send_signal(signal.SIGTERM)
    return code


if __name__ == "__main__":
    sys.exit(main())
