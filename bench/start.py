"""How long until someone is on watch: `midwatch up` until both processes answer, and `make demo` on a fresh clone until
the first diagnosis (packages from pip's cache and weights already fetched, since the network is not ours to measure).

    python bench/start.py [--runs 5] [--clone-runs 5] [--llama-server PATH]

Beside `midwatch up` stands llama.cpp's server on the same weights, which is a model server without the copilot.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from midwatch import results, settings
from midwatch.engine import hub

ROOT = Path(__file__).resolve().parent.parent
FIRST = re.compile(r"to the first diagnosis: ([\d.]+) s")
LIMIT_S = 300


def ready_s(argv: list[str], urls: list[str], environment: dict[str, str]) -> float:
    """Start a process, wait until every URL answers 200, stop it. Seconds."""
    started = time.monotonic()
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            waiting = list(urls)
            while waiting:
                if process.poll() is not None or time.monotonic() - started > LIMIT_S:
                    raise SystemExit(f"{argv} did not become ready")
                try:
                    with urllib.request.urlopen(waiting[0], timeout=1):
                        waiting.pop(0)
                except (urllib.error.URLError, OSError):
                    time.sleep(0.01)
            return time.monotonic() - started
        finally:
            process.send_signal(signal.SIGTERM)


def up_s(port: int) -> float:
    """`midwatch up` on an empty store. Seconds until both processes answer."""
    with tempfile.TemporaryDirectory() as state:
        argv = [sys.executable, "-m", "midwatch", "up", "--port", str(port), "--engine-port", str(port + 1)]
        urls = [f"http://127.0.0.1:{port}/healthz", f"http://127.0.0.1:{port + 1}/health"]
        return ready_s(argv, urls, {**os.environ, "MIDWATCH_STATE_DIR": state})


def llama_s(server: Path, weights: Path, port: int) -> float:
    """llama.cpp's server on the same weights. Seconds until it is healthy."""
    argv = [str(server), "-m", str(weights), "-t", "2", "-c", "8192", "--port", str(port)]
    return ready_s(argv, [f"http://127.0.0.1:{port}/health"], dict(os.environ))


def clone_s() -> float:
    """`ONCE=1 make demo` in a fresh clone with a fresh virtual environment. Seconds until the first diagnosis."""
    folder = Path(tempfile.mkdtemp())
    try:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "clone")], check=True)
        demo = subprocess.run(
            ["make", "demo", "ONCE=1"], cwd=folder / "clone", capture_output=True, text=True, check=False, timeout=900
        )
        found = FIRST.search(demo.stdout)
        if found is None:
            raise SystemExit(f"make demo printed no first diagnosis:\n{demo.stdout[-2000:]}\n{demo.stderr[-2000:]}")
        return float(found.group(1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure and write `results/reliability/start.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clone-runs", type=int, default=5)
    parser.add_argument("--llama-server", type=Path)
    arguments = parser.parse_args()
    configured = settings.load()
    weights = hub.resolve(configured.engine.model, configured.cache_dir)
    ours, peer = [], []
    for _ in range(arguments.runs):
        ours.append(up_s(8710))
        if arguments.llama_server:
            peer.append(llama_s(arguments.llama_server, weights, 8720))
    rows = [
        results.row(
            "midwatch up until ready",
            ours,
            "s",
            target=8.0,
            direction="at_most",
            peer="llama.cpp server, same weights, no copilot" if peer else None,
            peer_samples=peer,
        )
    ]
    if arguments.clone_runs:
        samples = [clone_s() for _ in range(arguments.clone_runs)]
        rows.append(
            results.row(
                "make demo on a fresh clone until the first diagnosis",
                samples,
                "s",
                target=180.0,
                direction="at_most",
                note="packages from pip's cache, weights fetched before: without download time",
            )
        )
    results.write(ROOT / "results" / "reliability" / "start.json", rows)
    print(results.table(rows))


if __name__ == "__main__":
    main()
