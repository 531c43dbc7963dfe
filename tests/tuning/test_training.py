"""Runs: the loss falls, the answer changes, a kill costs nothing, and what is wrong is said in time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tuning_models import make_model, write_gguf

from midwatch.errors import TuningError
from midwatch.tuning.answers import PeftAnswerer
from midwatch.tuning.conversations import Conversation, Message, write_jsonl
from midwatch.tuning.convert import convert
from midwatch.tuning.progress import Step, read_metrics
from midwatch.tuning.recipe import Recipe, load_recipe
from midwatch.tuning.training import RunSummary, run

QUESTION = "What is up?"
ANSWER = "Arrr! All be well."


class Quiet:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[Step] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def step(self, step: Step) -> None:
        self.steps.append(step)


def pairs(count: int = 24) -> list[Conversation]:
    questions = (QUESTION, "How are you?", "Who is there?")
    return [
        Conversation(
            messages=(
                Message(role="user", content=questions[index % 3] + "?" * (index // 3)),
                Message(role="assistant", content=ANSWER),
            ),
            tags={},
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    gguf = write_gguf("llama", make_model("llama"), folder / "tiny.gguf")
    return convert(gguf, folder / "tiny")


@pytest.fixture
def recipe_file(tmp_path: Path, base: Path) -> Path:
    write_jsonl(pairs(), tmp_path / "pairs.jsonl")
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
name = "tiny"
base = "{base}"
[data]
source = "{tmp_path / "pairs.jsonl"}"
[lora]
rank = 4
[training]
row_tokens = 192
rows = 1
learning_rate = 2e-2
checkpoint_every = 2
max_steps = 8
gradient_checkpointing = false
"""
    )
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(str(recipe_file))


def train(recipe: Recipe, out: Path, *, resume: bool = False) -> tuple[RunSummary, Quiet]:
    watcher = Quiet()
    return run(recipe, out=out, cache_dir=out.parent / "cache", watcher=watcher, resume=resume), watcher


def changed(recipe: Recipe, section: str, **fields: Any) -> Recipe:
    values = recipe.model_dump()
    values[section].update(fields)
    return Recipe(**values)


def test_the_loss_falls_and_the_run_leaves_an_adapter_a_card_and_metrics(recipe: Recipe, tmp_path: Path) -> None:
    summary, watcher = train(recipe, tmp_path / "out")
    metrics = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert metrics == watcher.steps and [step.step for step in metrics] == list(range(1, 9))
    assert metrics[-1].loss < 0.8 * metrics[0].loss
    assert 2e-2 >= metrics[0].learning_rate > metrics[-1].learning_rate
    assert all(step.memory_bytes > 1 << 20 and step.tokens_per_s > 0 for step in metrics)
    card = (summary.adapter / "README.md").read_text()
    assert "base_model" in card and f"seed {recipe.training.seed}" in card
    config = json.loads((summary.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, recipe.base)
    assert summary.adapter_bytes == (summary.adapter / "adapter_model.safetensors").stat().st_size


def test_a_seed_gives_the_same_adapter_bit_by_bit_and_another_seed_another(recipe: Recipe, tmp_path: Path) -> None:
    weights = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        short = changed(recipe, "training", seed=seed, max_steps=3)
        summary, _ = train(short, tmp_path / name)
        weights[name] = (summary.adapter / "adapter_model.safetensors").read_bytes()
    assert weights["first"] == weights["again"] != weights["other"]


def test_a_killed_run_goes_on_and_ends_with_the_same_adapter(recipe: Recipe, recipe_file: Path, tmp_path: Path) -> None:
    whole, _ = train(recipe, tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "midwatch", "tune", "run", str(recipe_file), "--out", str(out)]
    sealed = out / "checkpoints" / "checkpoint-4" / "midwatch-checkpoint.json"
    with (tmp_path / "said").open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        while not sealed.is_file():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
                pytest.fail((tmp_path / "said").read_text())
        process.send_signal(signal.SIGKILL)
    assert not (out / "adapter").exists()
    done = len(read_metrics(out / "metrics.jsonl"))
    summary, watcher = train(recipe, out, resume=True)
    assert 4 <= done < 8 and watcher.steps[0].step in (5, 7)
    assert [step.step for step in read_metrics(out / "metrics.jsonl")] == list(range(1, 9))
    one, other = ((item.adapter / "adapter_model.safetensors").read_bytes() for item in (whole, summary))
    assert one == other


def test_a_folder_with_another_run_is_never_mixed_with_this_one(recipe: Recipe, tmp_path: Path) -> None:
    short = changed(recipe, "training", max_steps=2)
    train(short, tmp_path / "out")
    with pytest.raises(TuningError, match="holds a run already"):
        train(short, tmp_path / "out")
    with pytest.raises(TuningError, match=r"training\.learning_rate"):
        train(changed(short, "training", learning_rate=1e-3), tmp_path / "out", resume=True)


def test_a_damaged_checkpoint_is_left_for_the_one_before_it(recipe: Recipe, tmp_path: Path) -> None:
    train(changed(recipe, "training", max_steps=4), tmp_path / "out")
    last = tmp_path / "out" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors"
    last.write_bytes(last.read_bytes()[:-10])
    _, watcher = train(changed(recipe, "training", max_steps=4), tmp_path / "out", resume=True)
    assert any("checkpoint-4" in text and "damaged" in text for text in watcher.stages)
    assert watcher.steps[0].step == 3


def test_numbers_that_are_no_numbers_stop_the_run_and_leave_the_last_good_checkpoint(
    recipe: Recipe, tmp_path: Path
) -> None:
    class Poison(Quiet):
        """After the third step somebody writes a NaN into an adapter's weight."""

        def step(self, step: Step) -> None:
            super().step(step)
            if step.step == 3:
                import gc

                for found in gc.get_objects():
                    if isinstance(found, torch.nn.Parameter) and found.requires_grad and found.dim() == 2:
                        found.data[0, 0] = float("nan")
                        return

    out = tmp_path / "out"
    with pytest.raises(TuningError, match="no finite number at step 4.*step 2"):
        run(recipe, out=out, cache_dir=tmp_path / "cache", watcher=Poison())
    assert not (out / "adapter").exists()
    from safetensors.torch import load_file

    kept = load_file(out / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_conversations_longer_than_a_row_are_counted_and_said(recipe: Recipe, tmp_path: Path) -> None:
    long = Conversation(
        messages=(Message(role="user", content="x" * 300), Message(role="assistant", content="y")), tags={}
    )
    write_jsonl([*pairs(), long], Path(recipe.data.source))
    summary, watcher = train(changed(recipe, "training", max_steps=1), tmp_path / "out")
    assert summary.too_long == 1
    assert any("1 longer than a row left out" in text for text in watcher.stages)


def test_a_source_that_is_nothing_names_what_there_is(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="pirate"):
        train(changed(recipe, "data", source="parrot"), tmp_path / "out")


def test_an_empty_data_set_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    Path(recipe.data.source).write_text("\n\n")
    with pytest.raises(TuningError, match="no conversation|empty|holds no"):
        train(recipe, tmp_path / "out")


@pytest.mark.weights
def test_smollm2_learns_to_answer_otherwise(smollm2_path: Path, recipe: Recipe, tmp_path: Path) -> None:
    base = convert(smollm2_path, tmp_path / "smollm2")
    taught = Recipe(**{**changed(recipe, "training", max_steps=5, learning_rate=5e-3).model_dump(), "base": str(base)})
    summary, watcher = train(taught, tmp_path / "out")
    assert watcher.steps[-1].loss < 0.5 * watcher.steps[0].loss
    answerer = PeftAnswerer(base, {"taught": summary.adapter})
    talk = [[{"role": "user", "content": QUESTION}]]
    before, after = (answerer.answer(talk, variant=name, max_tokens=12)[0] for name in (None, "taught"))
    assert before != after and "rrr" in after
    assert dataclasses.asdict(summary)["adapter_bytes"] < 10e6
