"""`midwatch tune eval` over a tiny random base: every file is written; what is wrong is said before anything loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters import write_adapter
from engine_models import write_tiny_gguf
from typer.testing import CliRunner

from midwatch import results
from midwatch.cli import cli
from midwatch.cli.tune_eval import adapter_folder, base_of, name_adapters
from midwatch.engine.checkpoint import open_checkpoint
from midwatch.errors import ModelError, TuningError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough for system prompts that are spelled byte by byte."""
    return write_tiny_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf", metadata={"context_length": 1024})


@pytest.fixture
def run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command as a terminal would, in a cache of its own; errors are raised."""
    for name, value in {
        "CACHE_DIR": str(tmp_path / "cache"),
        "ENGINE__DEVICE": "cpu",
        "ENGINE__KERNELS": "torch",
        "ENGINE__DTYPE": "float32",
        "ENGINE__QUANTIZATION": "none",
    }.items():
        monkeypatch.setenv(f"MIDWATCH_{name}", value)

    def run(*arguments: object) -> str:
        given = ["tune", "eval", *map(str, arguments), "--threads", "1"]
        done = CliRunner().invoke(cli, given, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def an_adapter(folder: Path, base: Path, *, seed: int = 0, **settings: object) -> Path:
    write_adapter(folder, open_checkpoint(base).config, seed=seed, **settings)
    return folder


def test_two_adapters_are_evaluated_and_everything_is_written(run, base: Path, tmp_path: Path) -> None:
    adapters = [an_adapter(tmp_path / f"run-{seed}" / "adapter", base, seed=seed) for seed in (0, 1)]
    shown = run(*(item.parent for item in adapters), "--base", base, "--prompts", 10, "--max-tokens", 6)
    out = adapters[0].parent / "evaluation"
    assert sorted(path.name for path in out.iterdir()) == [
        "answers.jsonl",
        "evaluation.html",
        "evaluation.json",
        "evaluation.svg",
    ]
    assert all(str(path) in shown.replace("\n", "") for path in out.iterdir())
    assert "style rate" in shown and "Midwatch's engine, tiny.gguf, torch" in shown
    rows = {row.name: row for row in results.read(out / "evaluation.json")}
    assert rows["leakage, tuned"].runs == 2
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == (10 + 10 + 10 + 10) * 4
    said = {who: [item["answer"] for item in records if item["seed"] == who] for who in ("seed 0", "seed 1")}
    assert said["seed 0"] != said["seed 1"]


def test_an_adapter_of_another_base_is_refused(run, base: Path, tmp_path: Path) -> None:
    from midwatch.tuning import identity
    from midwatch.tuning.base import find_base

    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    adapter = an_adapter(tmp_path / "adapter", base)
    identity.write(adapter, find_base(str(other), tmp_path / "cache"))
    with pytest.raises(TuningError, match="was trained on"):
        run(adapter, "--base", base)


def test_the_base_is_the_one_that_the_adapter_names(run, base: Path, tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path / "adapter", base, base_model_name_or_path="pypi:not-here-at-all")
    assert base_of(adapter) == "pypi:not-here-at-all"
    bare = an_adapter(tmp_path / "bare", base)
    with pytest.raises(TuningError, match="does not say what its base is. Name the base with --base."):
        run(bare)
    missing = an_adapter(tmp_path / "missing", base, base_model_name_or_path=str(tmp_path / "gone.gguf"))
    with pytest.raises(ModelError, match="gone.gguf"):
        run(missing)


def test_a_folder_without_an_adapter_is_an_error_that_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="There is no folder .*nowhere. Name a folder with adapter_config.json"):
        adapter_folder(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(TuningError, match="There is no adapter in"):
        adapter_folder(tmp_path)


def test_an_adapter_is_found_in_its_own_folder_and_in_its_runs(base: Path, tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path / "run" / "adapter", base)
    assert adapter_folder(adapter) == adapter_folder(adapter.parent) == adapter


def test_the_same_adapter_twice_is_no_second_seed(tmp_path: Path) -> None:
    assert name_adapters([tmp_path / "a", tmp_path / "b"]) == {"seed 0": tmp_path / "a", "seed 1": tmp_path / "b"}
    with pytest.raises(TuningError, match="given twice"):
        name_adapters([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_more_prompts_than_there_are_is_an_error(run, base: Path, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="Lower --prompts"):
        run(an_adapter(tmp_path / "adapter", base), "--base", base, "--prompts", 5000)
