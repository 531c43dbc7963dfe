"""`midwatch eval triage`: columns on a small set, with a real host on this machine where one is asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from midwatch import results
from midwatch.cli import cli
from midwatch.copilot.model import Case
from midwatch.errors import FoundryError, SettingsError
from midwatch.foundry.incident import Incident, Truth, write

SECRET = "hunter2hunter2hunter2"
DISK = (
    "2024-05-01 03:00:01 INFO api: handled request 1",
    f"2024-05-01 03:00:02 INFO api: login with password={SECRET}",
    "2024-05-01 03:01:00 ERROR api: write failed: [Errno 28] No space left on device: '/var/spool/part-1'",
)
DNS = (
    "2024-05-01 03:00:01 INFO api: handled request 1",
    "2024-05-01 03:01:00 ERROR api: getaddrinfo ENOTFOUND db.internal: no such host",
)


class Host(ThreadingHTTPServer):
    """A bigger model that thinks every disk is full, and remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.heard: list[dict[str, Any]] = []
        self.keys: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Host

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append(body)
        self.server.keys.append(self.headers.get("Authorization", ""))
        ids = re.findall(r"\bL\d+\b", body["messages"][-1]["content"])
        said = {
            "citations": ids[-1:],
            "category": "disk_storage_full",
            "severity": "critical",
            "entity": "unknown",
            "summary": "The disk of the service is full, so that writes fail.",
            "next_steps": [],
        }
        events = [
            {"model": "big", "choices": [{"delta": {"content": json.dumps(said)}, "finish_reason": "stop"}]},
            {"model": "big", "choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 100}},
        ]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def host() -> Iterator[Host]:
    server = Host()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def known(tmp_path: Path) -> str:
    """A file of two labelled incidents."""
    path = tmp_path / "two.jsonl.gz"
    pairs = ((DISK, "disk_storage_full"), (DNS, "dns_resolution"))
    write(
        path,
        (
            Incident(
                id=category,
                source="kit",
                case=Case(service="api", title="api fails", lines=lines),
                truth=Truth(category=category, lines=frozenset({len(lines)})),
            )
            for lines, category in pairs
        ),
    )
    return str(path)


def run(tmp_path: Path, *arguments: str) -> Any:
    places = ["--out", str(tmp_path / "out"), "--record", str(tmp_path / "record")]
    return CliRunner().invoke(cli, ["eval", "triage", *arguments, *places])


def test_a_file_is_judged_and_leaves_rows_pictures_verdicts_and_a_page(tmp_path: Path, known: str) -> None:
    done = run(tmp_path, known, "--column", "rules")
    assert done.exit_code == 0, done.output
    rows = {row.name: row.value for row in results.read(tmp_path / "out" / "eval-two.json")}
    assert rows["two, rules: category right"] == 1.0
    assert rows["two, rules: cited lines: F1"] == 1.0
    assert "category right" in done.stdout
    assert (tmp_path / "record" / "two-rules.jsonl").read_text().count("\n") == 3
    assert "<svg" in (tmp_path / "record" / "eval.html").read_text()
    assert str(tmp_path / "out" / "eval-two-reliability.svg") in done.stdout


def test_a_bigger_host_is_asked_about_everything_and_sees_no_secret(
    tmp_path: Path, known: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_HOST", "k-123")
    url = f"http://127.0.0.1:{host.server_port}/v1"
    asked = ["--column", "rules", "--column", "bigger", "--host", url, "--model", "big", "--key-env", "KEY_OF_HOST"]
    done = run(tmp_path, known, *asked, "--usd-in", "2", "--usd-out", "10")
    assert done.exit_code == 0, done.output
    rows = {row.name: row.value for row in results.read(tmp_path / "out" / "eval-two.json")}
    assert len(host.heard) == 2
    assert host.keys == ["Bearer k-123"] * 2
    assert "login with password" in json.dumps(host.heard)
    assert SECRET not in json.dumps(host.heard)
    assert rows["two, bigger: category right"] == 0.5
    assert rows["two, bigger: cost per incident"] == pytest.approx((1000 * 2 + 100 * 10) / 1e6)
    page = (tmp_path / "record" / "eval.html").read_text()
    assert "what was said on this machine: dns_resolution" in page


def test_only_the_first_are_judged_under_a_limit(tmp_path: Path, known: str) -> None:
    done = run(tmp_path, known, "--column", "rules", "--limit", "1")
    assert "two: 1 incident\n" in done.stdout


def test_a_column_that_needs_a_host_says_so(tmp_path: Path, known: str) -> None:
    done = run(tmp_path, known, "--column", "bigger")
    assert isinstance(done.exception, SettingsError)
    assert "--host" in str(done.exception)


def test_a_key_that_is_not_set_is_named(tmp_path: Path, known: str) -> None:
    asked = ["--column", "bigger", "--host", "http://127.0.0.1:1/v1", "--model", "big", "--key-env", "NO_SUCH_KEY"]
    done = run(tmp_path, known, *asked)
    assert isinstance(done.exception, SettingsError)
    assert "NO_SUCH_KEY" in str(done.exception)


def test_an_unknown_set_lists_the_known_ones(tmp_path: Path) -> None:
    done = run(tmp_path, "nonsense", "--column", "rules")
    assert isinstance(done.exception, FoundryError)
    assert "foundry-seeds" in str(done.exception)
