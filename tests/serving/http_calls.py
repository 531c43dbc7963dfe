"""Calls without any client's help."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from serve_process import health


def call(
    url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request: status, headers, body."""
    connection = http.client.HTTPConnection(urlsplit(url).hostname or "", urlsplit(url).port, timeout=20)
    try:
        connection.request(method, path, body, headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def post(url: str, path: str, headers: dict[str, str] | None = None, **fields: object) -> tuple[int, Any]:
    """One JSON request: status, and the answer as JSON where it is JSON."""
    status, got, answer = call(url, "POST", path, json.dumps(fields).encode(), headers)
    return status, json.loads(answer) if got["content-type"] == "application/json" else answer.decode()


def get(url: str, path: str) -> tuple[int, Any]:
    """One JSON answer."""
    status, _, answer = call(url, "GET", path)
    return status, json.loads(answer)


def events(answer: str) -> list[Any]:
    """The JSON of server-sent events, without the last `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in answer.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def await_health(url: str, status: int) -> dict[str, str]:
    """Ask until `/health` has this status."""
    deadline = time.monotonic() + 10
    while (answer := health(url))[0] != status:
        assert time.monotonic() < deadline, answer
        time.sleep(0.01)
    return answer[1]
