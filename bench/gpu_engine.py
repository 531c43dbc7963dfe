"""The engine on one GPU beside vLLM: is it right, how near are its kernels to the card's limits, how fast is it whole.

    python bench/gpu_engine.py [--only check kernels steps engine] [--peer FILE] [--out results/engine/gpu.json]

Weights are random and of Llama-3-8B's shape, prompts are token ids, so nothing is downloaded. `--peer` is a file of
JSON lines that a bench of vLLM wrote for the same shapes on the same card (fields `work`, `output_tok_s`). The engine's
figures go through `Engine.step`: scheduling, paging, sampling and what a caller hears are inside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpu_checks
import gpu_kernels
from midwatch import results
from midwatch.engine.batch import Batch
from midwatch.engine.checkpoint import ModelConfig
from midwatch.engine.cuda.attention import find_flash
from midwatch.engine.cuda.backend import CudaBackend
from midwatch.engine.engine import Engine
from midwatch.engine.lora import Adapter, LoraPair
from midwatch.engine.request import SamplingParams
from midwatch.errors import SettingsError
from midwatch.settings import EngineSettings

LLAMA_3_8B = ModelConfig(
    architecture="llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    context_length=8192,
    norm_eps=1e-5,
    tied_embeddings=False,
    layer_rope_bases=(500_000.0,) * 32,
    layer_windows=(0,) * 32,
    attention_scale=128**-0.5,
)
SETTINGS = EngineSettings(
    attention="triton",
    block_size=16,
    max_num_seqs=256,
    max_num_batched_tokens=16384,
    max_waiting=1024,
    gpu_memory_utilization=0.85,
)
MAX_MODEL_LEN = 4096
COPY_GB_S = 4300.0
PEER = "vLLM 0.26"
AIMS = {"latency": 1.0, "batch8": 1.0, "nano": 0.9, "prefix": 1.0}
Work = tuple[list[list[int]], list[int], float, int]


def main() -> None:
    """Run the parts that are asked for and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["check", "kernels", "steps", "engine"])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/engine/gpu.json"))
    parser.add_argument("--profile", action="store_true", help="also print what each kernel of a step takes")
    parser.add_argument("--trials", type=int, default=3)
    given = parser.parse_args()
    name = torch.cuda.get_device_name(0)
    print(name, torch.__version__, flush=True)
    rows: list[results.Row] = []
    if "check" in given.only:
        rows += gpu_checks.rows()
        results.write(given.out, rows, device=name, seed=0)
    if "kernels" in given.only:
        rows += gpu_kernels.rows()
        results.write(given.out, rows, device=name, seed=0)
    if {"steps", "engine"} & set(given.only):
        begin = time.perf_counter()
        backend = CudaBackend.random(LLAMA_3_8B, SETTINGS, max_model_len=MAX_MODEL_LEN)
        torch.cuda.synchronize()
        print(f"built in {time.perf_counter() - begin:.1f} s, {backend.num_blocks} blocks", flush=True)
        if "steps" in given.only:
            rows += steps(backend, profile=given.profile) + adapter_steps(backend)
        if "engine" in given.only:
            rows += engine(backend, read_peer(given.peer), given.trials)
        backend.close()
        del backend
        if "steps" in given.only:
            rows += quantized_steps()
        results.write(given.out, rows, device=name, seed=0)
    print(results.table(rows))
    sys.exit(any(row.holds is False for row in rows if row.unit == "relative error"))


# --- one step at a time ----------------------------------------------------------------------------------------------


def steps(backend: CudaBackend, *, profile: bool) -> list[results.Row]:
    """Milliseconds of decode and prefill steps on the device, beside what reading weights and keys takes at best."""
    rows = []
    for count, context in ((1, 256), (8, 256), (16, 256), (64, 256), (64, 2112), (256, 256), (256, 820)):
        batch = decode_batch(backend, count, context)
        samples, host_ms = step_ms(backend, batch, 20)
        streamed = backend.weight_bytes + count * context * backend.kv_bytes_per_token
        floor = streamed / COPY_GB_S / 1e6
        note = f"reading its {streamed / 1e9:.1f} GB at {COPY_GB_S:.0f} GB/s takes {floor:.2f} ms"
        extra: dict[str, float | str] = {"host_ms": round(host_ms, 3), "tokens_per_s": round(count / samples[0] * 1e3)}
        rows.append(results.row(f"decode step {count} × {context:,}", samples, "ms", note=note, extra=extra))
        print(
            f"decode {count}x{context}: {min(samples):.3f} ms, host {host_ms:.3f} ms, floor {floor:.2f} ms", flush=True
        )
        if profile and (count, context) in ((1, 256), (8, 256), (64, 2112), (256, 820)):
            print_profile(partial(backend.forward, batch))
    for count, context in ((2, 4096), (16, 1024), (1, 128)):
        batch = prefill_batch(backend, count, context)
        samples, host_ms = step_ms(backend, batch, 4)
        extra = {"host_ms": round(host_ms, 3), "tokens_per_s": round(count * context / samples[0] * 1e3)}
        rows.append(results.row(f"prefill step {count} × {context:,}", samples, "ms", extra=extra))
        speed = count * context / min(samples)
        print(
            f"prefill {count}x{context}: {min(samples):.2f} ms, host {host_ms:.2f} ms, {speed:.1f}k tok/s", flush=True
        )
        if profile and context == 1024:
            print_profile(partial(backend.forward, batch))
    return rows


def adapter_steps(backend: CudaBackend) -> list[results.Row]:
    """What four adapters of rank 16 on every linear layer cost a step of eight sequences."""
    config = backend.config
    sizes = {"q": 4096, "k": 1024, "v": 1024, "o": 4096, "gate": 14336, "up": 14336, "down": 4096}
    for slot in range(4):
        pairs = {
            (layer, name): LoraPair(a=torch.randn(16, 14336 if name == "down" else 4096), b=torch.zeros(outputs, 16))
            for layer in range(config.num_layers)
            for name, outputs in sizes.items()
        }
        backend.load_adapter(slot, Adapter(name=f"adapter {slot}", rank=16, pairs=pairs))
    batch = decode_batch(backend, 8, 256)
    without, _ = step_ms(backend, batch, 20)
    chosen = np.array([0, 1, 2, 3, -1, 0, 1, 2], dtype=np.int32)
    samples, _ = step_ms(backend, dataclasses.replace(batch, adapters=chosen), 20)
    for slot in range(4):
        backend.unload_adapter(slot)
    print(f"decode 8x256 with 4 adapters: {min(samples):.3f} ms, without {min(without):.3f} ms", flush=True)
    return [
        results.row("decode step 8 × 256, 4 adapters of rank 16", samples, "ms", note=f"without: {min(without):.3f} ms")
    ]


def quantized_steps() -> list[results.Row]:
    """Decode steps with weights of eight and of four bits."""
    rows = []
    for kind in ("int8", "int4"):
        settings = SETTINGS.model_copy(update={"quantization": kind, "max_num_seqs": 64, "kv_cache_mib": 20_000})
        backend = CudaBackend.random(LLAMA_3_8B, settings, max_model_len=MAX_MODEL_LEN)
        for count in (1, 8, 64):
            samples, _ = step_ms(backend, decode_batch(backend, count, 256), 20)
            note = f"{backend.weight_bytes / 1e9:.1f} GB of weights"
            rows.append(results.row(f"{kind}: decode step {count} × 256", samples, "ms", note=note))
            print(f"{kind} decode {count}x256: {min(samples):.3f} ms, {note}", flush=True)
        backend.close()
    return rows


def step_ms(backend: CudaBackend, batch: Batch, repeats: int) -> tuple[list[float], float]:
    """(device milliseconds a step, three times; milliseconds until `forward` returns on an idle device)."""
    backend.forward(batch)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    backend.forward(batch)
    host_ms = (time.perf_counter() - begin) * 1e3
    samples = []
    for _ in range(3):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeats):
            backend.forward(batch)
        end.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(end) / repeats)
    return samples, host_ms


def decode_batch(backend: CudaBackend, count: int, context: int) -> Batch:
    """One token for each of `count` sequences of `context` tokens over shuffled blocks."""
    return _batch(backend, count, context, 1)


def prefill_batch(backend: CudaBackend, count: int, context: int) -> Batch:
    """`count` whole prompts."""
    return _batch(backend, count, context, context)


def _batch(backend: CudaBackend, count: int, context: int, new: int) -> Batch:
    size = backend.block_size
    width = -(-context // size)
    tables = np.random.default_rng(0).permutation(backend.num_blocks)[: count * width].reshape(count, width)
    places = np.arange(context - new, context)
    ids = np.random.default_rng(1).integers(0, 10_000, count * new)
    starts = np.arange(0, count * new + 1, new)
    arrays: dict[str, Any] = {
        "token_ids": ids,
        "positions": np.tile(places, count),
        "slots": (tables[:, places // size] * size + places % size).ravel(),
        "starts": starts,
        "lengths": np.full(count, context),
        "block_tables": tables,
        "logit_rows": starts[1:] - 1,
        "adapters": np.full(count, -1),
    }
    for name, array in arrays.items():
        arrays[name] = np.ascontiguousarray(array, dtype=np.int32)
    return Batch(**arrays)


def print_profile(call: Callable[[], object], lines: int = 16) -> None:
    """Microseconds of each kernel of one call, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    events: Any = sorted(recorded.key_averages(), key=lambda event: -event.device_time_total)
    for event in [event for event in events if event.device_time_total > 0][:lines]:
        total, each = event.device_time_total / 3, event.device_time_total / event.count
        print(f"    {event.key[:72]:72s} {event.count / 3:5.0f} × {each:8.2f} us = {total:9.1f} us", flush=True)


# --- the engine ------------------------------------------------------------------------------------------------------


class Ids:
    """In place of a tokenizer: ids in, ids out, no text."""

    vocab_size = LLAMA_3_8B.vocab_size
    eos_ids: frozenset[int] = frozenset()
    control_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        """No text."""
        return b""


def nano(rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """nano-vllm's bench: 256 requests of 100 to 1,024 tokens in and out."""
    prompts = [[rng.randint(0, 10000) for _ in range(rng.randint(100, 1024))] for _ in range(256)]
    return prompts, [rng.randint(100, 1024) for _ in range(256)]


def latency(rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """One request: 128 tokens in, 256 out."""
    return [[rng.randint(0, 10000) for _ in range(128)]], [256]


def batch8(rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """Eight requests: 128 tokens in, 256 out."""
    return [[rng.randint(0, 10000) for _ in range(128)] for _ in range(8)], [256] * 8


def fixed(rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """256 requests of 1,024 tokens in, 128 out."""
    return [[rng.randint(0, 10000) for _ in range(1024)] for _ in range(256)], [128] * 256


def prefix(rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """64 requests that share 2,048 tokens, each with 64 of its own, 64 out."""
    head = [rng.randint(0, 10000) for _ in range(2048)]
    return [head + [rng.randint(0, 10000) for _ in range(64)] for _ in range(64)], [64] * 64


WORKS: dict[str, tuple[str, Callable[[random.Random], tuple[list[list[int]], list[int]]], float]] = {
    "latency": ("one request, 128 in, 256 out", latency, 0.0),
    "batch8": ("8 requests, 128 in, 256 out", batch8, 0.0),
    "nano": ("256 requests, 100 to 1,024 in and out, temperature 0.6", nano, 0.6),
    "fixed": ("256 requests, 1,024 in, 128 out, temperature 0.6", fixed, 0.6),
    "prefix": ("64 requests that share 2,048 tokens, 64 own, 64 out, temperature 0.6", prefix, 0.6),
}


def engine(backend: CudaBackend, peer: dict[str, list[float]], trials: int) -> list[results.Row]:
    """Tokens a second of whole workloads; those with long prompts also with FlashAttention 3, if it is here."""
    tokenizer: Any = Ids()
    core = Engine(tokenizer, backend, SETTINGS, MAX_MODEL_LEN)
    rows = [workload(core, name, peer.get(name, []), trials) for name in WORKS]
    try:
        backend.decoder.flash = find_flash("fa3")
    except SettingsError as error:
        print(f"without FlashAttention 3: {error.what}", flush=True)
        return rows
    rows += [workload(core, name, peer.get(name, []), 2, ", FlashAttention 3") for name in ("nano", "fixed", "prefix")]
    backend.decoder.flash = None
    return rows


def workload(core: Engine, name: str, theirs: list[float], trials: int, suffix: str = "") -> results.Row:
    """One workload, after a first run of its shorter half that compiles what is not compiled yet."""
    what, make, temperature = WORKS[name]
    samples, seconds, busy = [], 0.0, 0.0
    for trial in range(trials + 1):
        prompts, lengths = make(random.Random(0))
        if trial == 0:
            lengths = [16] * len(lengths)
        shift = 10_007 * (trial + 1) + 61 * len(suffix)  # other ids: nothing is cached from a run before
        shifted = [[(token + shift) % 128_000 for token in prompt] for prompt in prompts]
        seconds, host_s = run(core, shifted, lengths, temperature)
        if trial:
            samples.append(sum(lengths) / seconds)
            busy = max(busy, host_s / seconds)
    aim = AIMS[name] * statistics.median(theirs) if theirs and name in AIMS and not suffix else None
    print(f"{name}{suffix}: {[round(x, 1) for x in samples]} tok/s, host {busy:.2f}, peer {theirs}", flush=True)
    return results.row(
        f"Llama-3-8B shape, bfloat16: {what}{suffix}",
        samples,
        "tok/s",
        target=aim,
        direction="at_least" if aim else None,
        peer=PEER if theirs else None,
        peer_samples=theirs,
        extra={"output_tokens": sum(lengths), "last_trial_s": round(seconds, 3), "host_share": round(busy, 3)},
    )


def run(core: Engine, prompts: list[list[int]], lengths: list[int], temperature: float) -> tuple[float, float]:
    """(seconds of the whole workload, seconds that Python did not spend waiting for the device)."""
    torch.cuda.synchronize()
    waited = 0.0
    begin = time.perf_counter()
    for prompt, length in zip(prompts, lengths, strict=True):
        core.add_request(prompt, SamplingParams(temperature=temperature, max_tokens=length, ignore_eos=True))
    made = 0
    original = torch.cuda.Event.synchronize

    def synchronize(event: torch.cuda.Event) -> None:
        nonlocal waited
        start = time.perf_counter()
        original(event)
        waited += time.perf_counter() - start

    setattr(torch.cuda.Event, "synchronize", synchronize)  # noqa: B010 - a plain assignment has another type
    try:
        while core.has_work:
            made += sum(len(output.token_ids) for output in core.step())
    finally:
        setattr(torch.cuda.Event, "synchronize", original)  # noqa: B010
    seconds = time.perf_counter() - begin
    assert made == sum(lengths), f"{made} tokens came out, {sum(lengths)} were asked for"
    return seconds, seconds - waited


def read_peer(path: Path | None) -> dict[str, list[float]]:
    """Output tokens a second of each workload, all trials."""
    found: dict[str, list[float]] = {}
    if path is not None and path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "output_tok_s" in row:
                found.setdefault(row["work"], []).append(row["output_tok_s"])
    return found


if __name__ == "__main__":
    main()
