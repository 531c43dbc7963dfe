"""QLoRA of Llama-3-8B on one GPU: our step beside plain peft and transformers, at 2 x 2,048 packed tokens.

    python bench/gpu_tuning.py [--only check speed profile] [--trials 3] [--out results/tuning/gpu.json]

The architecture is Llama-3-8B's, the weights are random and made on the device, layer by layer, in NF4 with double
quantization. Each trial makes its model anew in empty memory, and trials of the sides alternate. The peer is peft's own
recipe: `prepare_model_for_kbit_training` with its defaults (gradient checkpointing, norms, embedding and head in
float32), adapters in float32 under bfloat16 autocast (what `Trainer(bf16=True)` does), SDPA, its own loss, fused AdamW.
It is measured twice: with the batch's documents kept apart as ours are, and with each row as one document (no mask).
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midwatch import results
from midwatch.tuning import plan
from midwatch.tuning.recipe import LINEARS, DataSection, Recipe, TrainingSection

GIB = 2**30
ROWS, ROW_TOKENS = 2, 2048
AIM_GIB = 7.4
LLAMA_3_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}  # fmt: skip
SMALL: dict[str, Any] = LLAMA_3_8B | {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 8192,
}  # fmt: skip
SIDES = ("ours", "plain", "plain-rows", "ours-roomy")
ROOMY_GIB = 9.5
"""What `ours-roomy` may spend on layers that keep everything: its peak stays under the peer's."""


def base_model(shape: dict[str, Any], *, four_bit: bool = True, seed: int = 0) -> Any:
    """A random Llama on the device, its linears in NF4, made one by one."""
    import bitsandbytes
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(**shape)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    draw = torch.Generator("cuda").manual_seed(seed)

    def weight(like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=torch.bfloat16, device="cuda").normal_(std=0.02, generator=draw)

    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and four_bit:
            made = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
                device="meta",
            )  # fmt: skip
            made.weight = bitsandbytes.nn.Params4bit(
                weight(module.weight), requires_grad=False, quant_type="nf4", compress_statistics=True
            ).to("cuda")
            model.set_submodule(name, made)
        elif isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight = torch.nn.Parameter(weight(module.weight), requires_grad=False)
        elif type(module).__name__ == "LlamaRMSNorm":
            module.weight = torch.nn.Parameter(1 + weight(module.weight), requires_grad=False)
    model.model.rotary_emb = LlamaRotaryEmbedding(config, device="cuda")
    model.is_loaded_in_4bit = four_bit
    return model.requires_grad_(False)


def with_adapter(model: Any, *, b_std: float = 0.0) -> Any:
    """Rank 8 on all linears; B zero, or random for tests."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEARS), task_type="CAUSAL_LM"))
    for name, adapter in tuned.named_parameters():
        if "lora_B" in name and b_std:
            torch.nn.init.normal_(adapter, std=b_std)
    return tuned.train()


def batch(rows: int, row_tokens: int, vocabulary: int, *, seed: int) -> dict[str, Tensor]:
    """Random tokens in documents of 64 to 512, all counted but each document's first."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (rows, row_tokens), generator=generator)
    positions = []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < row_tokens:
            row += range(draw.randint(64, 512))
        positions.append(row[:row_tokens])
    made = {"input_ids": ids, "position_ids": torch.tensor(positions)}
    made["labels"] = ids.masked_fill(made["position_ids"] == 0, -100)
    return {name: value.cuda() for name, value in made.items()}


def loss_of(side: str, model: Any, data: dict[str, Tensor]) -> Tensor:
    """One side's loss."""
    if side.startswith("ours"):
        from midwatch.tuning.fast import packed_loss

        return packed_loss(model, data)
    given = data if side == "plain" else {name: data[name] for name in ("input_ids", "labels")}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss: Tensor = model(**given, use_cache=False).loss
        return loss


def prepared(side: str, shape: dict[str, Any], *, spare_gib: float = 0.0, b_std: float = 0.0) -> Any:
    """A model as one side trains it."""
    model = base_model(shape)
    if side.startswith("ours"):
        from midwatch.tuning.fast import prepare

        tuned = with_adapter(model, b_std=b_std)
        prepare(tuned, checkpointing=True, spare_bytes=int(spare_gib * GIB))
        return tuned
    from peft import prepare_model_for_kbit_training

    return with_adapter(prepare_model_for_kbit_training(model), b_std=b_std)


def allocated() -> float:
    """GiB held by tensors now."""
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() / GIB


def peak(*, reset: bool = True) -> float:
    """The most GiB held by tensors since the last reset."""
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() / GIB
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return most


def trial(side: str, *, steps: int, spare_gib: float, profile: bool = False) -> dict[str, Any]:
    """Train some steps: tokens/s of each, and what memory was held when."""
    warnings.simplefilter("ignore")
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    figures: dict[str, Any] = {"side": side, "device": torch.cuda.get_device_name(), "before_gib": allocated()}
    began = time.perf_counter()
    model = prepared(side, LLAMA_3_8B, spare_gib=spare_gib)
    gc.collect()
    torch.cuda.empty_cache()
    figures["build_s"] = time.perf_counter() - began
    figures["loaded_gib"] = allocated()
    figures["footprint_gib"] = model.get_base_model().get_memory_footprint() / GIB
    adapters = [weight for weight in model.parameters() if weight.requires_grad]
    figures["adapter_parameters"] = sum(weight.numel() for weight in adapters)
    optimizer = torch.optim.AdamW(adapters, lr=1e-4, fused=True)
    batches = [batch(ROWS, ROW_TOKENS, LLAMA_3_8B["vocab_size"], seed=seed) for seed in range(4)]
    figures["documents"] = [int((data["position_ids"] == 0).sum()) for data in batches]

    def step(data: dict[str, Tensor]) -> Tensor:
        loss = loss_of(side, model, data)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(adapters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    torch.cuda.reset_peak_memory_stats()
    for data in batches[:3]:
        figures["loss"] = step(data).item()
    figures["rest_gib"] = allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loss = loss_of(side, model, batches[0])
    figures["launched_forward_ms"] = (time.perf_counter() - start) * 1e3
    figures["forward_peak_gib"] = peak()
    figures["after_forward_gib"] = allocated()
    start = time.perf_counter()
    loss.backward()  # type: ignore[no-untyped-call]
    figures["launched_backward_ms"] = (time.perf_counter() - start) * 1e3
    figures["backward_peak_gib"] = peak()
    del loss
    optimizer.zero_grad(set_to_none=True)
    seconds = []
    torch.cuda.reset_peak_memory_stats()
    for index in range(steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step(batches[index % 4])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    figures["tokens_s"] = [ROWS * ROW_TOKENS / taken for taken in seconds]
    figures["peak_gib"] = peak(reset=False)
    figures["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    if profile:
        figures["kernels"] = profiled(lambda: step(batches[0]))
    return figures


def profiled(work: Any) -> list[str]:
    """The kernels that take longest, over one step."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        work()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    spans = []
    for event in found.events():
        if event.device_type.name == "CUDA":
            kernels.setdefault(event.name[:90], []).append(event.time_range.elapsed_us())
            if "Memcpy" not in event.name:
                spans.append((event.time_range.start, event.time_range.end))
    lines = [
        f"{sum(times) / 1e3:9.2f} ms {len(times):5d} x {statistics.median(times):8.1f} us  {name}"
        for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:28]
    ]
    busy = sum(end - start for start, end in spans) / 1e3
    wall = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e3
    return [f"busy {busy:.1f} ms of {wall:.1f} ms, {len(spans)} kernels", *lines]


def check() -> list[results.Row]:
    """Kernels against their twins, and gradients against float32 and against plain peft."""
    import gpu_tuning_checks

    return gpu_tuning_checks.rows(prepared, base_model, loss_of, batch, SMALL)


def speed(trials: int, steps: int, spare_gib: float) -> list[dict[str, Any]]:
    """Alternate the sides; each trial makes its model anew, in empty memory."""
    found = []
    for _ in range(trials):
        for side in SIDES:
            spare = ROOMY_GIB if side == "ours-roomy" else spare_gib
            found.append(trial(side, steps=steps, spare_gib=spare))
            print(json.dumps({k: v for k, v in found[-1].items() if k != "tokens_s"}), flush=True)
            print(side, [round(value) for value in found[-1].get("tokens_s", [])], flush=True)
    return found


def rows_of(trials: list[dict[str, Any]]) -> list[results.Row]:
    """The rows: speed, then memory, each with its spread over the trials."""

    def per_trial(side: str, name: str) -> list[float]:
        return [
            statistics.median(one[name]) if isinstance(one[name], list) else one[name]
            for one in trials
            if one["side"] == side
        ]

    shape = "Llama-3-8B, NF4, rank 8, 2 x 2,048 packed"
    made = []
    for peer, label in (("plain", "peft and transformers"), ("plain-rows", "the same, rows as one document")):
        ours, theirs = per_trial("ours", "tokens_s"), per_trial(peer, "tokens_s")
        made.append(results.row(f"{shape}: tokens/s beside {label}", ours, "tokens/s", peer=label, peer_samples=theirs,
            target=2 * statistics.median(theirs), direction="at_least"))  # fmt: skip
        made.append(results.row(f"{shape}: peak memory beside {label}", per_trial("ours", "peak_gib"), "GiB",
            peer=label, peer_samples=per_trial(peer, "peak_gib"), target=statistics.median(per_trial(peer, "peak_gib")),
            direction="at_most"))  # fmt: skip
    made.append(results.row(f"{shape}: peak memory", per_trial("ours", "peak_gib"), "GiB", target=AIM_GIB,
        direction="at_most"))  # fmt: skip
    made.append(results.row(f"{shape}: tokens/s with no more memory than the peer", per_trial("ours-roomy", "tokens_s"),
        "tokens/s", peer="peft and transformers", peer_samples=per_trial("plain", "tokens_s"),
        extra={"peak GiB": statistics.median(per_trial("ours-roomy", "peak_gib"))}))  # fmt: skip
    made.append(results.row(f"{shape}: memory reserved by the allocator", per_trial("ours", "reserved_gib"), "GiB",
        peer="peft and transformers", peer_samples=per_trial("plain", "reserved_gib")))  # fmt: skip
    return made + memory_rows(per_trial)


def memory_rows(per_trial: Callable[[str, str], list[float]]) -> list[results.Row]:
    """What the plan says beside what was measured, moment by moment, for both sides."""
    shape = plan.ModelShape.of(LLAMA_3_8B)
    recipe = Recipe(
        name="bench", base="random", data=DataSection(source="pirate"),
        training=TrainingSection(rows=ROWS, row_tokens=ROW_TOKENS),
    )  # fmt: skip
    made = []
    for side, planned in (
        ("ours", plan.plan(shape, recipe, "cuda")),
        ("plain", plan.plain_plan(shape, recipe, "cuda")),
    ):
        loaded = sum(part.nbytes for part in planned.parts[:4])
        for what, key, predicted in (
            ("loaded with its adapter", "loaded_gib", loaded),
            ("between two steps", "rest_gib", planned.resting),
            ("peak", "peak_gib", planned.total),
        ):
            samples = per_trial(side, key)
            extra: dict[str, float | str] = {
                "predicted": predicted / GIB,
                "measured over predicted": statistics.median(samples) * GIB / predicted,
            }
            made.append(results.row(f"memory, {side}: {what}", samples, "GiB", extra=extra))
    footprint = per_trial("ours", "footprint_gib")
    extra = {
        "predicted": plan.footprint(shape, recipe) / GIB,
        "left out: scales of NF4": plan.quant_state(shape) / GIB,
        "allocated": statistics.median(per_trial("ours", "loaded_gib")),
    }
    made.append(results.row("memory, ours: model.get_memory_footprint()", footprint, "GiB", extra=extra))
    return made


def style(model: Path, prompts: int) -> list[results.Row]:
    """Teach SmolLM2 the pirate's style on this GPU, from a GGUF file to an adapter, and ask it."""
    from midwatch.tuning import evaluation, suite, training
    from midwatch.tuning.answers import PeftAnswerer
    from midwatch.tuning.base import find_base
    from midwatch.tuning.recipe import load_recipe

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        changes: dict[str, Any] = {"base": str(model)}
        recipe = load_recipe("pirate-smollm2", **changes)
        began = time.perf_counter()
        base = find_base(recipe.base, cache)
        converted_s = time.perf_counter() - began
        summary = training.run(recipe, out=Path(folder) / "run", cache_dir=cache, watcher=_Quiet())
        taught_s = time.perf_counter() - began
        answerer = PeftAnswerer(base, {"pirate": summary.adapter}, batch=128)
        found = evaluation.evaluate(answerer, suite.pirate(prompts), suite.PirateJudge(), ["pirate"])
    made = [
        results.row("pirate-smollm2 on the GPU: from a GGUF file to an adapter", [taught_s], "s", target=60.0,
            direction="at_most", extra={"converting s": converted_s, "steps": summary.steps}),
    ]  # fmt: skip
    for name in ("style rate", "leakage", "retention", "exact answers"):
        measure = found.measure(name)
        tuned, aim = measure.intervals["tuned"], measure.aim
        if tuned is not None:
            made.append(results.row(f"pirate-smollm2 taught on the GPU: {name}", [float(tuned.value)], measure.unit,
                target=aim.value if aim else None, direction=aim.direction if aim else None,
                extra={"low": float(tuned.low), "high": float(tuned.high), "prompts": measure.prompts}))  # fmt: skip
    return made


class _Quiet:
    """Hears of a run, and says its stages and some steps."""

    def stage(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)

    def step(self, step: Any) -> None:
        """Print every twentieth."""
        if step.step % 20 == 1:
            print(step, flush=True)


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", nargs="?", default="all", choices=["all", "trial"])
    parser.add_argument("--only", nargs="*", default=["check", "speed"], choices=["check", "speed", "profile", "style"])
    parser.add_argument("--side", default="ours", choices=SIDES)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", type=Path, help="SmolLM2's GGUF file, for style")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--spare-gib", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("results/tuning/gpu.json"))
    given = parser.parse_args()
    if given.mode == "trial":
        print(json.dumps(trial(given.side, steps=given.steps, spare_gib=given.spare_gib)))
        return
    rows = []
    if "check" in given.only:
        rows += check()
    if "profile" in given.only:
        for side in SIDES[:2]:
            figures = trial(side, steps=5, spare_gib=given.spare_gib, profile=True)
            print("\n".join(figures.pop("kernels")), flush=True)
            print(json.dumps(figures), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    if "speed" in given.only:
        rows += rows_of(speed(given.trials, given.steps, given.spare_gib))
    if "style" in given.only:
        rows += style(given.model, given.prompts)
    if rows:
        results.write(given.out, rows, device=torch.cuda.get_device_name(), seed=0)
        print(results.table(rows))


if __name__ == "__main__":
    main()
