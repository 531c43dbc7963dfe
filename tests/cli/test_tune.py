"""`midwatch tune`: plan, data, run and export, as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_models import write_tiny_gguf
from typer.testing import CliRunner

from midwatch.cli import cli
from midwatch.engine.engine import Engine
from midwatch.engine.request import SamplingParams
from midwatch.errors import ModelError, TuningError
from midwatch.settings import EngineSettings

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a cache and a state folder of its own; errors are raised."""
    monkeypatch.setenv("MIDWATCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MIDWATCH_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli, ["tune", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def write_recipe(folder: Path, rows: int = 1) -> Path:
    """A recipe over a tiny random base and a few generated conversations."""
    base = write_tiny_gguf(folder / "tiny.gguf", metadata={"context_length": 1024})
    path = folder / "recipe.toml"
    path.write_text(
        f'name = "tiny"\nbase = "{base}"\n[data]\nsource = "pirate"\nconversations = 12\n'
        "[lora]\nrank = 4\n[training]\nrow_tokens = 1024\nmax_steps = 2\ngradient_checkpointing = false\n"
        + f"rows = {rows}\n"
    )
    return path


def test_a_plan_needs_no_weights_and_its_parts_add_up(run: Run) -> None:
    found = json.loads(run("plan", "pirate-llama3-8b", "--json"))
    for device in ("cuda", "cpu"):
        *parts, total = found[device].values()
        assert sum(parts) == total
    assert found["cuda"]["Linears in NF4"] == 6_979_321_856 // 2
    scales = found["cuda"]["Their scales (quant state)"]
    assert 8 * (found["cuda"]["Linears in NF4"] + scales) / 6_979_321_856 == pytest.approx(4.127, abs=0.001)
    assert (
        found["footprint"]
        < found["cuda"]["Linears in NF4"]
        + scales
        + found["cuda"]["Embedding, head and norms"]
        + (found["cuda"]["Adapters in float32"])
    )
    assert "plain peft" in run("plan", "pirate-llama3-8b")


def test_a_plan_of_a_base_that_is_nowhere_says_how_to_get_it(run: Run) -> None:
    with pytest.raises(TuningError, match=r"midwatch models pull hf:some/thing"):
        run("plan", "pirate-smollm2", "--base", "hf:some/thing")


def test_data_is_written_and_reads_back(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pirate.jsonl"
    shown = run("data", "pirate", "--conversations", 40, "--seed", 3, "--to", path)
    assert "conversations: 40" in shown and len(path.read_text().splitlines()) == 40
    assert "conversations: 40" in run("data", path)
    again = tmp_path / "again.jsonl"
    run("data", "pirate", "--conversations", 40, "--seed", 3, "--to", again)
    assert again.read_bytes() == path.read_bytes()


def test_a_bad_line_of_data_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}\nnot json\n')
    with pytest.raises(TuningError, match=r"(?s)bad\.jsonl.*line 1.*line 2"):
        run("data", path)


def test_a_run_is_exported_as_a_file_that_the_engine_serves(run: Run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    shown = run("run", recipe, "--out", tmp_path / "out", "--seed", 5)
    assert "2 steps" in shown and str(tmp_path / "out" / "adapter") in shown
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]["training"]["seed"] == 5
    run("export", tmp_path / "out", "--to", tmp_path / "merged.gguf", "--kind", "F16")
    engine = Engine.load(tmp_path / "merged.gguf", EngineSettings(device="cpu", kernels="torch", kv_cache_mib=8))
    request = engine.add_request(engine.chat_prompt([{"role": "user", "content": "x"}]), SamplingParams(max_tokens=3))
    seen = set()
    while engine.has_work:
        seen |= {output.request_id for output in engine.step()}
    assert seen == {request}
    assert not list(tmp_path.glob("midwatch-merge-*"))


def test_a_base_that_is_not_there_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        run("run", "pirate-smollm2", "--base", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_a_run_that_does_not_fit_is_refused_before_anything_loads(run: Run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, rows=50_000)
    with pytest.raises(TuningError, match=r"needs .* GiB .* GiB free"):
        run("run", recipe, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["transformers", "peft", "accelerate"])
def test_without_the_extra_a_sentence_says_what_to_install(package: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['midwatch', 'tune', 'run', 'pirate-smollm2', "
        f"'--out', {str(tmp_path / 'out')!r}]; from midwatch.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert package in done.stderr and "midwatch[tuning]" in done.stderr and "Traceback" not in done.stderr
