"""Checkpoints: the newest whole one is found, a damaged one is left aside, and a person hears why."""

from __future__ import annotations

from pathlib import Path

import pytest

from midwatch.errors import TuningError
from midwatch.tuning import checkpoints


def checkpoint(folder: Path, step: int, *, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"weights" * step)
    (path / "optimizer.pt").write_bytes(b"moments")
    if sealed:
        checkpoints.seal(path)
    return path


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 10)
    assert checkpoints.latest(tmp_path, pytest.fail) == newest
    assert checkpoints.step_of(newest) == 10


def test_one_that_was_cut_off_is_left_aside(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, sealed=False)
    heard: list[str] = []
    assert checkpoints.latest(tmp_path, heard.append) == whole
    assert "checkpoint-10" in heard[0] and "not written to its end" in heard[0]


@pytest.mark.parametrize("hurt", ["changed", "missing", "manifest"])
def test_a_damaged_one_is_left_aside_and_named(tmp_path: Path, hurt: str) -> None:
    whole = checkpoint(tmp_path, 5)
    broken = checkpoint(tmp_path, 10)
    if hurt == "changed":
        (broken / "optimizer.pt").write_bytes(b"momentX")
    elif hurt == "missing":
        (broken / "optimizer.pt").unlink()
    else:
        (broken / checkpoints.MANIFEST).write_text("{")
    heard: list[str] = []
    assert checkpoints.latest(tmp_path, heard.append) == whole
    assert heard


def test_if_all_are_damaged_the_run_stops(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 5) / "optimizer.pt").write_bytes(b"")
    with pytest.raises(TuningError, match=r"optimizer\.pt is damaged"):
        checkpoints.latest(tmp_path, lambda text: None)


def test_a_run_that_was_killed_in_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5, sealed=False)
    assert checkpoints.latest(tmp_path, lambda text: None) is None
