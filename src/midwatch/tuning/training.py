"""A fine-tuning run: from a recipe to an adapter with its card.

transformers' `Trainer` turns the crank (optimizer, schedule, checkpoints, FSDP2 under torchrun); ours is what it is
fed, what the loss counts, how the model computes (`fast.py`), and what a crash leaves behind.

    OUT/run.json         the recipe; base.json beside it: which base
    OUT/data.jsonl       the conversations, as they were shown; a resumed run reads them again
    OUT/metrics.jsonl    one line per optimizer step
    OUT/checkpoints/     the last few, each whole or not there
    OUT/adapter/         peft's layout, in bfloat16, with a model card
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from accelerate import PartialState
from peft import get_peft_model_state_dict
from transformers import PrinterCallback, Trainer, TrainingArguments

from midwatch.errors import TuningError
from midwatch.tuning import checkpoints, fast, identity, plan
from midwatch.tuning.base import find_base, load_base, with_adapter
from midwatch.tuning.card import write_card
from midwatch.tuning.conversations import read_jsonl
from midwatch.tuning.own_words import AnswerAll
from midwatch.tuning.progress import METRICS, MetricsCallback, Watcher, read_metrics
from midwatch.tuning.recipe import Recipe
from midwatch.tuning.run_folder import DATA, Data, Made, describe, load_data, open_run

if TYPE_CHECKING:
    from peft import PeftModel

SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run made and what it took. `tokens_per_s` is over the training alone, without loading."""

    adapter: Path
    adapter_bytes: int
    steps: int
    first_loss: float
    last_loss: float
    conversations: int
    too_long: int
    tokens: int
    counted_tokens: int
    tokens_per_s: float
    training_s: float
    total_s: float
    peak_bytes: int


def run(
    recipe: Recipe,
    *,
    out: Path,
    cache_dir: Path,
    watcher: Watcher,
    resume: bool = False,
    answer_all: AnswerAll | None = None,
    made: Made | None = None,
) -> RunSummary:
    """Train an adapter by a recipe, or go on with a run that was cut off.

    `answer_all` asks the base, which a recipe with `data.answers = "base"` needs; `made` are data sets that the caller
    makes, by the name that `data.source` gives. Raises `TuningError` for data,
    checkpoints and numbers that are no good, `ModelError` for the base.
    """
    began = time.monotonic()
    device = _device()
    watcher.stage(f"Base {recipe.base}")
    base = find_base(recipe.base, cache_dir)
    _check_room(recipe, base, device)
    processes = PartialState(cpu=device.type == "cpu")
    if processes.is_main_process:
        open_run(out, recipe, base, watcher, answer_all=answer_all, made=made or {}, resume=resume)
    processes.wait_for_everyone()
    data = load_data(read_jsonl(out / DATA), recipe, base)
    watcher.stage(describe(data))
    checkpoint = checkpoints.latest(out / "checkpoints", watcher.stage) if resume else None
    watcher.stage(f"Loading {'NF4' if recipe.four_bit else 'bfloat16'} weights on {device}")
    model = load_base(base, four_bit=recipe.four_bit, device=device, sharded=_launched())
    model = with_adapter(model, recipe.lora, seed=recipe.training.seed)
    fast.prepare(model, checkpointing=recipe.training.gradient_checkpointing)
    trainer, training_s = _train(model, recipe, data, out=out, device=device, watcher=watcher, checkpoint=checkpoint)
    adapter = out / "adapter"
    if processes.is_main_process:
        _save_adapter(trainer, adapter, recipe, base)
    processes.wait_for_everyone()
    metrics = read_metrics(out / METRICS)
    summary = RunSummary(
        adapter=adapter,
        adapter_bytes=(adapter / "adapter_model.safetensors").stat().st_size,
        steps=trainer.state.max_steps,
        first_loss=metrics[0].loss,
        last_loss=_mean([step.loss for step in metrics[-10:]]),
        conversations=data.conversations,
        too_long=data.too_long,
        tokens=data.tokens,
        counted_tokens=data.counted_tokens,
        tokens_per_s=_mean([step.tokens_per_s for step in metrics]),
        training_s=training_s,
        total_s=time.monotonic() - began,
        peak_bytes=_peak_bytes(device),
    )
    if processes.is_main_process:
        write_card(adapter, recipe, summary, data.sha256)
        described = {**asdict(summary), "adapter": adapter.name}
        (out / SUMMARY).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return summary


def _train(
    model: PeftModel,
    recipe: Recipe,
    data: Data,
    *,
    out: Path,
    device: torch.device,
    watcher: Watcher,
    checkpoint: Path | None,
) -> tuple[Trainer, float]:
    """Turn the crank; returns the trainer when it is done, and the seconds it took. Raises `TuningError`."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = total_steps(recipe, len(data.rows), world)
    step_rows = min(recipe.training.rows * recipe.training.accumulate * world, len(data.rows))
    callback = MetricsCallback(
        out,
        watcher,
        tokens_per_step=data.filled * recipe.training.row_tokens * step_rows,
        memory_bytes=lambda: _memory_bytes(device),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, peft and transformers warn each other of what they deprecate
        trainer = _PackedTrainer(
            model=model,
            args=_arguments(recipe, out / "checkpoints", steps, device),
            train_dataset=[row.as_dict() for row in data.rows],
            data_collator=_stack,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        started = time.monotonic()
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as error:
            raise TuningError(
                f"The GPU's memory ran out: {str(error).splitlines()[0][:200]}",
                "Take fewer training.rows or training.row_tokens, or free memory; then go on with --resume.",
            ) from None
    return trainer, time.monotonic() - started


def total_steps(recipe: Recipe, rows: int, world: int) -> int:
    """Optimizer steps of a run over so many packed rows on so many devices."""
    training = recipe.training
    per_epoch = math.ceil(rows / (training.rows * training.accumulate * world))
    return training.max_steps or max(1, round(per_epoch * training.epochs))


class _PackedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is ours: completion tokens only, documents apart, no full logits."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True  # so that it counts the items of a whole step
        self.loss_is_scaled_for_ga = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean loss per counted token of the step; several devices' shares add up to it."""
        loss = fast.packed_loss(model, inputs, num_items=num_items_in_batch)
        return loss * self.accelerator.num_processes if num_items_in_batch is not None else loss


def _check_room(recipe: Recipe, base: Path, device: torch.device) -> None:
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    planned = plan.plan(plan.ModelShape.read(base), recipe, kind)
    plan.check_room(planned, plan.free_bytes(kind))


def _device() -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _arguments(recipe: Recipe, folder: Path, steps: int, device: torch.device) -> TrainingArguments:
    training = recipe.training
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=training.rows,
        gradient_accumulation_steps=training.accumulate,
        max_steps=steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(steps * training.warmup_share),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        data_seed=training.seed,
        save_steps=training.checkpoint_every,
        save_total_limit=training.keep_checkpoints,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        ddp_backend="gloo" if _launched() and device.type == "cpu" else None,
        **_sharding(device),
    )


def _launched() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def _sharding(device: torch.device) -> dict[str, Any]:
    """Under torchrun, FSDP2: each GPU holds its share of every layer and gathers the rest when it is needed.

    On CPUs accelerate shards nothing: every process holds the whole model, and gradients are averaged.
    """
    if not _launched() or device.type == "cpu":
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}


def _stack(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _save_adapter(trainer: Trainer, adapter: Path, recipe: Recipe, base: Path) -> None:
    """peft's layout, in bfloat16 (what the adapter computes in), without a path of this machine in it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in get_peft_model_state_dict(model).items()}
    model.peft_config["default"].base_model_name_or_path = recipe.base
    model.save_pretrained(adapter, state_dict=state, save_embedding_layers=False)
    identity.write(adapter, base)


def _memory_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
