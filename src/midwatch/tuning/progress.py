"""What a run says while it goes: one line of `metrics.jsonl` per optimizer step, and the same to whoever watches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from midwatch.errors import TuningError
from midwatch.tuning import checkpoints

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step. `loss` is nats per counted token; `memory_bytes` is resident, or allocated on the GPU."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    elapsed_s: float
    eta_s: float
    memory_bytes: int


class Watcher(Protocol):
    """Whoever watches a run."""

    def stage(self, text: str) -> None:
        """Something begins, or is worth knowing."""
        ...

    def step(self, step: Step) -> None:
        """An optimizer step is done."""
        ...


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Writes metrics, seals checkpoints, and stops a run whose numbers are no numbers before they reach a weight."""

    def __init__(self, out: Path, watcher: Watcher, *, tokens_per_step: float, memory_bytes: Callable[[], int]) -> None:
        self._path = out / METRICS
        self._watcher = watcher
        self._tokens_per_step = tokens_per_step
        self._memory_bytes = memory_bytes
        self._began = self._last = 0.0
        self._first_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget what a killed run wrote after its last checkpoint, and start the clock."""
        self._first_step = state.global_step
        if state.is_world_process_zero:
            trim_metrics(self._path, last_step=state.global_step)
        self._began = self._last = time.monotonic()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **_: Any
    ) -> None:
        """Raise `TuningError` for gradients that are NaN or infinite, so that no weight becomes so."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            return
        last = state.global_step - state.global_step % args.save_steps
        kept = f"The last good checkpoint is that of step {last}" if last else "No checkpoint had been written yet"
        raise TuningError(
            f"The loss or its gradient is no finite number at step {state.global_step + 1}. {kept}; the adapter was "
            "not changed by this step.",
            "Lower training.learning_rate in the recipe, or look at the conversations of this step.",
        )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, logs: dict[str, Any], **_: Any
    ) -> None:
        """Write a step's figures and show them."""
        if "loss" not in logs or not state.is_world_process_zero:
            return
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        done = state.global_step - self._first_step
        left = state.max_steps - state.global_step
        step = Step(
            step=state.global_step,
            steps=state.max_steps,
            loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            grad_norm=float(logs["grad_norm"]),
            tokens=round(state.global_step * self._tokens_per_step),
            tokens_per_s=self._tokens_per_step / seconds,
            elapsed_s=now - self._began,
            eta_s=left * (now - self._began) / done,
            memory_bytes=self._memory_bytes(),
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(step)) + "\n")
        self._watcher.step(step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say that the checkpoint just written is whole."""
        if state.is_world_process_zero:
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def read_metrics(path: Path) -> list[Step]:
    """Every whole line of a run's metrics; a line cut off by a kill is left out."""
    steps = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            steps.append(Step(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return steps


def trim_metrics(path: Path, *, last_step: int) -> None:
    """Keep the lines up to a step: those after it are about to be computed again."""
    write_metrics(path, [step for step in read_metrics(path) if step.step <= last_step])


def write_metrics(path: Path, steps: Sequence[Step]) -> None:
    """Replace a run's metrics."""
    path.write_text("".join(json.dumps(asdict(step)) + "\n" for step in steps), encoding="utf-8")
