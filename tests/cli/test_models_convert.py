from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_models import write_tiny_gguf
from typer.testing import CliRunner

from midwatch.cli import cli


def test_a_model_is_converted_to_a_folder_and_found_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIDWATCH_CACHE_DIR", str(tmp_path / "cache"))
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    done = CliRunner().invoke(cli, ["models", "convert", str(source), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert Path(found["path"]).parent == tmp_path / "cache" / "converted"
    assert found["size_bytes"] == sum(item.stat().st_size for item in Path(found["path"]).iterdir())
    asked = ["models", "convert", str(source), "--to", str(tmp_path / "out"), "--dtype", "float32"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    assert "float32" in done.stdout
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert "tiny.gguf" not in json.loads((tmp_path / "out" / "midwatch.json").read_text())["source"]["name"]


def test_a_model_that_is_not_here_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIDWATCH_CACHE_DIR", str(tmp_path))
    done = CliRunner().invoke(cli, ["models", "convert", "pypi:nothing"])
    assert done.exit_code != 0
    assert "midwatch models pull pypi:nothing" in str(done.exception)
    done = CliRunner().invoke(cli, ["models", "convert", "pypi:nothing", "--dtype", "int3"])
    assert "int3" in str(done.exception)
