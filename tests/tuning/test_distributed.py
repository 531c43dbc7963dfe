"""Two processes under torchrun train the same adapter as one with twice the rows, to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_training import base, recipe, recipe_file  # noqa: F401 - fixtures

from midwatch.tuning.progress import read_metrics
from midwatch.tuning.recipe import Recipe
from midwatch.tuning.training import run


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_processes_are_one_with_twice_the_rows(
    recipe: Recipe,  # noqa: F811
    recipe_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "midwatch", "tune", "run", str(recipe_file), "--steps", "2", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    class Quiet:
        def stage(self, text: str) -> None: ...

        def step(self, step: object) -> None: ...

    values = recipe.model_dump()
    values["training"].update(rows=2, max_steps=2)
    one = run(Recipe(**values), out=tmp_path / "one", cache_dir=tmp_path / "cache", watcher=Quiet())
    losses = [[step.loss for step in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    first, second = (
        load_file(folder / "adapter_model.safetensors") for folder in (one.adapter, tmp_path / "two" / "adapter")
    )
    assert first.keys() == second.keys()
    learnt = [(first[name].float(), second[name].float()) for name in first if "lora_B" in name]
    apart = sum(float((one - two).square().sum()) for one, two in learnt) ** 0.5
    size = sum(float(one.square().sum()) for one, _ in learnt) ** 0.5
    # AdamW's first steps are signs of gradients: those that are nearly zero may turn by a rounding.
    assert apart < 0.25 * size
