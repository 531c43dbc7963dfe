"""Memory of a training step on a CPU: what the plan says, and what the process takes.

    python bench/tuning_memory.py [--trials 3] [--out results/tuning/memory.json]

SmolLM2-135M's shape with random weights in NF4, 2 rows of 512 tokens. Each trial is a process of its own; measured is
how much its resident memory has grown at the highest moment of three steps over what it was before the model was made.
The kernel's mark of that moment is reset behind loading (`/proc/self/clear_refs`), so making the model does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from midwatch import results
from midwatch.tuning.plan import GIB, ModelShape, footprint, plain_plan, plan
from midwatch.tuning.recipe import LINEARS, DataSection, Recipe, TrainingSection

SMOLLM2: dict[str, Any] = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
SIDES = {"ours": True, "ours, nothing made again": False, "peft and transformers": True}


def recipe(*, checkpointing: bool) -> Recipe:
    """What is planned and run."""
    training = TrainingSection(rows=2, row_tokens=512, gradient_checkpointing=checkpointing)
    return Recipe(name="memory", base="random", data=DataSection(source="pirate"), training=training)


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process's memory now (`VmRSS`) or at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def base_model(shape: dict[str, Any]) -> Any:
    """A random model in NF4."""
    import bitsandbytes
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            packed.weight = bitsandbytes.nn.Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            ).to("cpu")
            model.set_submodule(name, packed)
    model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """Two rows of eight documents of 64 tokens, half of each counted."""
    ids = torch.randint(0, vocabulary, (2, 512), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(64).repeat(2, 8)
    return {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions < 32, -100)}


def trial(side: str) -> dict[str, float]:
    """Three steps of one side; bytes of growth, resting and at the peak.

    A model of one small layer takes the same steps first, so that what libraries load and compile is there before.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 512, "head_dim": 64}
    steps(side, SMOLLM2 | small | {"num_attention_heads": 3})
    return steps(side, SMOLLM2)


def steps(side: str, shape: dict[str, Any]) -> dict[str, float]:
    """Make a model and train it for three steps."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from midwatch.tuning.fast import packed_loss, prepare

    gc.collect()
    before = resident()
    model = base_model(shape)
    plain = side == "peft and transformers"
    if plain:
        model = prepare_model_for_kbit_training(model)
    tuned: Any = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEARS))).train()
    if not plain:
        prepare(tuned, checkpointing=SIDES[side])
    adapters = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4)
    gc.collect()
    with contextlib.suppress(OSError):
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)
    loaded = resident() - before
    Path("/proc/self/clear_refs").write_text("5")
    data = batch(shape["vocab_size"])
    for _ in range(3):
        if plain:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = tuned(**data, use_cache=False).loss
        else:
            loss = packed_loss(tuned, data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loaded": loaded, "peak": resident("VmHWM") - before, "reported": model.get_memory_footprint()}


def rows(trials: int) -> list[results.Row]:
    """A row per side: measured, and what the plan says."""
    shape, made = ModelShape.of(SMOLLM2), []
    for side, checkpointing in SIDES.items():
        found = [apart(side) for _ in range(trials)]
        wanted = recipe(checkpointing=checkpointing)
        if side == "peft and transformers":
            predicted = plain_plan(shape, wanted, "cpu").total
        else:
            predicted = plan(shape, wanted, "cpu", counted_share=0.5).total
        peaks = [one["peak"] / GIB for one in found]
        extra: dict[str, float | str] = {
            "predicted": predicted / GIB,
            "measured over predicted": statistics.median(peaks) * GIB / predicted,
        }
        made.append(results.row(f"SmolLM2-135M, 2 x 512 tokens on a CPU: peak, {side}", peaks, "GiB", extra=extra))
        if side == "ours":
            made += _loaded(shape, wanted, found)
    return made


def _loaded(shape: ModelShape, wanted: Recipe, found: list[dict[str, float]]) -> list[results.Row]:
    """What the loaded model takes by the process, the plan and `get_memory_footprint`."""
    held = sum(part.nbytes for part in plan(shape, wanted, "cpu").parts[:4])
    reported = found[0]["reported"]
    return [
        results.row("SmolLM2-135M in NF4 with its adapter: loaded", [one["loaded"] / GIB for one in found], "GiB",
            extra={"predicted": held / GIB}),
        results.row("SmolLM2-135M: get_memory_footprint", [reported / GIB], "GiB",
            note="leaves NF4's scales out",
            extra={"predicted": footprint(shape, wanted) / GIB, "with the scales": held / GIB}),
    ]  # fmt: skip


def apart(side: str) -> dict[str, float]:
    """Run a trial in a process of its own."""
    command = [sys.executable, __file__, "--side", side]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/tuning/memory.json"))
    given = parser.parse_args()
    if given.side:
        print(json.dumps(trial(given.side)))
        return
    made = rows(given.trials)
    results.write(given.out, made, seed=0)
    print(results.table(made))
    print(json.dumps({item.name: item.extra for item in made}, indent=1))


if __name__ == "__main__":
    main()
