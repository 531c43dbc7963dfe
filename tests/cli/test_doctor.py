from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from midwatch.cli import cli
from midwatch.engine.cpu.build import why_unavailable


def test_doctor_names_what_is_here(smollm2_path: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found) == {"python", "cores", "memory", "kernels", "gpu", "model"}
    assert found["model"]["ok"]
    assert str(smollm2_path) in found["model"]["what"]
    assert found["kernels"]["ok"] == (why_unavailable(None) is None)
    shown = CliRunner().invoke(cli, ["doctor"]).output
    assert all(name in shown for name in found)


def test_doctor_says_what_a_missing_compiled_step_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file where the folder should be")
    monkeypatch.setenv("MIDWATCH_CACHE_DIR", str(tmp_path))
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert not found["kernels"]["ok"]
    assert "several times slower" in found["kernels"]["what"]
    assert not found["model"]["ok"]  # nothing was pulled into that folder
    assert "midwatch models pull" in found["model"]["what"]
    assert done.exit_code == 1


def test_a_schedule_is_told_step_by_step() -> None:
    asked = ["schedule", "100+3", "700+2@1", "20+4@1:-1", "--blocks", "64", "--budget", "512", "--block-size", "16"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "step 0: 100 of 512 tokens computed; 100 slots used, 12 empty, 0 shared, 0 cached"
    assert "  request 2 computes 491 and still owes 209" in lines
    assert lines[-1] == "  request 3 is done"


@pytest.mark.parametrize("spec", ["100", "0+5", "5+0", "a+b", "5+5@", "99999999+1"])
def test_a_request_that_is_none_is_said(spec: str) -> None:
    done = CliRunner().invoke(cli, ["schedule", spec])
    assert done.exit_code != 0
    assert "PROMPT+ANSWER" in str(done.exception)
