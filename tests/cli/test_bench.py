from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from midwatch.cli import cli
from midwatch.errors import SettingsError

sys.path += [str(Path(__file__).resolve().parents[1] / "engine"), str(Path(__file__).resolve().parents[1] / "serving")]
from engine_models import write_tiny_gguf
from http_calls import await_health
from scripted_engine import ScriptedEngine, serve

from midwatch.errors import RequestError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("bench") / "tiny.gguf"))


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDWATCH_ENGINE__KERNELS", "torch")
    monkeypatch.setenv("MIDWATCH_ENGINE__THREADS", "1")


def test_latency_prints_speed_beside_what_the_memory_gives(tiny: str) -> None:
    asked = ["bench", "latency", "--model", tiny, "--batch", "2", "--prompt-tokens", "8", "--new-tokens", "4"]
    done = CliRunner().invoke(cli, [*asked, "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["batch"], found["prompt_tokens"], found["new_tokens"]) == (2, 8, 4)
    assert found["decode_tokens_per_s"] > 0
    assert 0 < found["roofline_share"] == found["roofline"]["achieved_gb_s"] / found["roofline"]["bandwidth_gb_s"]
    shown = CliRunner().invoke(cli, [*asked, "--rounds", "1"]).output
    assert "tokens/s" in shown
    assert "share of the roofline" in shown


def test_throughput_takes_ranges_of_lengths(tiny: str) -> None:
    asked = ["bench", "throughput", "--model", tiny, "--requests", "5", "--prompt-tokens", "4-9", "--new-tokens", "3"]
    done = CliRunner().invoke(cli, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["new_tokens"] == 15
    assert 20 <= found["prompt_tokens"] <= 45


@pytest.mark.parametrize("wrong", ["9-4", "0", "x", "4-", "-4", "1-2-3", ""])
def test_a_range_that_is_none_is_said(wrong: str) -> None:
    done = CliRunner().invoke(cli, ["bench", "throughput", f"--prompt-tokens={wrong}"])
    assert isinstance(done.exception, SettingsError)
    assert "100-500" in str(done.exception)


def test_a_server_is_measured_from_outside() -> None:
    with serve(ScriptedEngine().open) as url:
        await_health(url, 200)
        asked = [
            "bench",
            "serve",
            url,
            "--clients",
            "2",
            "--requests",
            "4",
            "--prompt-tokens",
            "5",
            "--new-tokens",
            "3",
        ]
        done = CliRunner().invoke(cli, [*asked, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["new_tokens"] == 12
        assert "time per output token" in CliRunner().invoke(cli, asked).output


def test_failed_answers_are_told_and_are_the_exit_code() -> None:
    engine = ScriptedEngine()
    with serve(engine.open) as url:
        await_health(url, 200)
        engine.fail_at = 3
        engine.failure = RequestError("Full.", status=429)
        done = CliRunner().invoke(cli, ["bench", "serve", url, "--requests", "4", "--prompt-tokens", "5"])
    assert done.exit_code == 1
    assert "failed" in done.output
    assert "Full." in done.output
