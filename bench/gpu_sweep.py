"""Time the CUDA kernels under many tilings on this GPU: where the defaults in `engine/cuda/` come from.

    python bench/gpu_sweep.py [linear] [quantized] [decode] [prefill]

Prints one line per shape and tiling, and writes nothing else. Linear layers are timed as a chain of recorded launches
over different weights, as a decode step runs them; attention as vLLM's probe does, one launch at a time.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from triton.testing import do_bench

from gpu_kernels import DIM, HEADS, KV_HEADS, decode_case
from midwatch.engine.cuda import attention, linear
from midwatch.engine.cuda.attention import Plan, Tiling
from midwatch.engine.cuda.linear import Blocking, Linear

PART = os.environ.get("SWEEP_PART", "")
_turns = itertools.count()
SHAPES = {  # Llama-3-8B: outputs, inputs, what the fused kernel does besides
    "qkv": (6144, 4096, "norm"),
    "o": (4096, 4096, "add"),
    "gate_up": (28672, 4096, "gate"),
    "down": (4096, 14336, "add"),
    "head": (128256, 4096, ""),
}


def chain_us(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds a call when all of them run one after another in a recorded graph; the median of seven replays."""
    if _is_left_to_another():
        return 1.0
    calls[0]()
    if PART:
        return 1.0
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    samples: list[float] = []
    for _ in range(7):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(samples)


def launch_us(call: Callable[[], object]) -> float:
    """Microseconds of one launch with a cold cache, the median of 30 ms."""
    if _is_left_to_another():
        return 1.0
    if PART:
        call()
        return 1.0
    return float(do_bench(call, warmup=5, rep=30, return_mode="median")) * 1e3


def _is_left_to_another() -> bool:
    """Several processes may compile a share of the kernels each before one times them all."""
    return bool(PART) and next(_turns) % int(PART.split("/")[1]) != int(PART.split("/")[0])


def random_linear(outputs: int, inputs: int, bits: linear.Bits = 16) -> Linear:
    """A layer of normal random weights."""
    weight = torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda") * 0.02
    return linear.make_linear(weight, bits)


def linears() -> None:
    """Every blocking against cuBLAS, for 1 to 64 rows."""
    row = [(8, 512, 4, 1), (4, 1024, 4, 1), (8, 1024, 8, 1), (8, 512, 4, 4), (16, 256, 4, 4), (4, 1024, 4, 4)]
    row += [(8, 256, 2, 4), (4, 512, 2, 4), (16, 512, 8, 3)]
    rows = [(16, 256, 2, 4), (16, 256, 1, 4), (32, 128, 2, 6), (32, 256, 4, 3), (16, 512, 4, 3), (64, 128, 4, 4)]
    rows += [(16, 128, 1, 6), (32, 128, 4, 6), (64, 64, 4, 6)]
    for name, (outputs, inputs, kind) in SHAPES.items():
        copies = max(2, int(6e8 / (outputs * inputs * 2)))
        layers = [random_linear(outputs, inputs) for _ in range(copies)]
        norm = torch.ones(inputs, device="cuda")
        for m in (1, 2, 8, 16, 32):
            x = torch.randn(m, inputs, dtype=torch.bfloat16, device="cuda")
            out = torch.empty(m, outputs // 2 if kind == "gate" else outputs, dtype=torch.bfloat16, device="cuda")
            library = chain_us([partial(layer, x) for layer in layers])
            found = []
            for sizes in row if m == 1 else rows:
                blocking = Blocking(outputs=sizes[0], inputs=sizes[1], warps=sizes[2], stages=sizes[3])
                options: dict[str, Any] = {"blocking": blocking, "add": kind == "add"}
                if kind == "norm":
                    options |= {"norm_K": norm, "eps": 1e-5}
                if kind == "gate":
                    options |= {"norm_K": norm, "eps": 1e-5, "activation": "silu"}
                try:
                    us = chain_us([partial(layer.fused, x, out, **options) for layer in layers])
                except Exception as error:  # a blocking that does not fit the chip is a result too
                    print("  failed", name, m, sizes, type(error).__name__, str(error)[:80])
                    continue
                found.append((us, sizes))
            found.sort()
            gb = outputs * inputs * 2 / 1e3
            best = ", ".join(f"{sizes} {us:.1f}" for us, sizes in found[:4])
            worst = f"{found[-1][1]} {found[-1][0]:.1f}" if found else ""
            print(f"{name:8s} M={m:<3d} cuBLAS {library:.1f} us {gb / library:.0f} GB/s | {best} | worst {worst}"
                  f" | best {gb / found[0][0]:.0f} GB/s", flush=True)  # fmt: skip
        del layers


def quantized() -> None:
    """Every blocking for weights in eight and in four bits, beside plain ones through cuBLAS."""
    row = [
        (8, 128, 4, 1),
        (4, 128, 2, 1),
        (4, 128, 2, 3),
        (8, 128, 2, 3),
        (4, 256, 4, 1),
        (4, 128, 4, 1),
        (2, 256, 2, 1),
    ]
    row += [(8, 256, 4, 3), (4, 256, 4, 3), (2, 128, 1, 3), (2, 256, 4, 1)]
    rows = [(64, 128, 8, 2), (32, 128, 4, 2), (64, 64, 4, 2), (32, 64, 2, 2), (32, 64, 4, 2), (16, 64, 1, 2)]
    rows += [(64, 32, 4, 2), (32, 32, 2, 3), (16, 32, 1, 3), (64, 64, 4, 1), (32, 32, 1, 2), (128, 32, 4, 2)]
    bits: tuple[linear.Bits, ...] = (8, 4)
    for kind in bits:
        for name in ("gate_up", "down"):
            outputs, inputs, extra = SHAPES[name]
            plain = [random_linear(outputs, inputs) for _ in range(3)]
            layers = [random_linear(outputs, inputs, kind) for _ in range(8)]
            norm = torch.ones(inputs, device="cuda")
            for m in (1, 8, 16, 32):
                x = torch.randn(m, inputs, dtype=torch.bfloat16, device="cuda")
                out = torch.empty(m, outputs // 2 if extra == "gate" else outputs, dtype=torch.bfloat16, device="cuda")
                library = chain_us([partial(layer, x) for layer in plain])
                before = chain_us([partial(layer.dense, torch.bfloat16) for layer in layers])
                found = []
                for sizes in row if m == 1 else rows:
                    blocking = Blocking(outputs=sizes[0], inputs=sizes[1], warps=sizes[2], stages=sizes[3])
                    options: dict[str, Any] = {"blocking": blocking, "add": extra == "add"}
                    if extra == "gate":
                        options["activation"] = "silu"
                    if extra == "gate" and m == 1:
                        options |= {"norm_K": norm, "eps": 1e-5}
                    try:
                        us = chain_us([partial(layer.fused, x, out, **options) for layer in layers])
                    except Exception as error:
                        print("  failed", kind, name, m, sizes, type(error).__name__, str(error)[:80])
                        continue
                    found.append((us, sizes))
                found.sort()
                best = ", ".join(f"{sizes} {us:.1f}" for us, sizes in found)
                print(f"int{kind} {name:8s} M={m:<3d} bf16 {library:.1f} us, unpacking {before:.1f} us | {best}"
                      f" | best {layers[0].num_bytes / found[0][0] / 1e3:.0f} GB/s", flush=True)  # fmt: skip


def decode() -> None:
    """Every tiling and number of splits, GB/s of keys and values."""
    tilings = [
        (64, 4, 3),
        (64, 4, 4),
        (64, 2, 4),
        (64, 8, 4),
        (128, 4, 3),
        (128, 8, 3),
        (32, 4, 5),
        (32, 2, 5),
        (32, 1, 5),
    ]
    for batch, context, choices in (
        (64, 8192, (1, 2, 4)),
        (8, 4096, (8, 16, 32)),
        (256, 1024, (1, 2)),
        (1, 4096, (32, 64)),
    ):
        for page in (16, 64):
            found = []
            for splits in choices:
                queries, pool, plan = decode_case(batch, context, page, splits)
                out = torch.empty(batch, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
                for sizes in tilings:
                    tiling = Tiling(tile=sizes[0], warps=sizes[1], stages=sizes[2])
                    us = launch_us(
                        partial(
                            attention.decode_attention,
                            queries,
                            pool[0],
                            pool[1],
                            out,
                            plan,
                            scale=DIM**-0.5,
                            window=0,
                            tiling=tiling,
                        )
                    )
                    found.append((us, splits, sizes))
                del pool
            found.sort()
            gb = 2 * batch * context * KV_HEADS * DIM * 2 / 1e3
            listed = ", ".join(f"splits {s} {t} {gb / us:.0f}" for us, s, t in found[:6])
            print(
                f"decode {batch}x{context} page {page}: {listed} | worst {found[-1][1:]} {gb / found[-1][0]:.0f}",
                flush=True,
            )


def prefill() -> None:
    """Every tiling for a whole prompt, TFLOP/s of the causal half."""
    tilings = [(64, 8, 3, 128), (64, 4, 3, 64), (128, 8, 2, 128), (64, 8, 2, 128), (64, 4, 3, 128), (32, 8, 3, 128)]
    for batch, context in ((4, 4096), (16, 1024)):
        for page in (16, 64):
            _, pool, plan = decode_case(batch, context, page, 1)
            count = batch * context
            starts = np.arange(0, count + 1, context, dtype=np.int32)
            queries = torch.randn(count, HEADS * DIM, dtype=torch.bfloat16, device="cuda")
            out = torch.empty(count, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
            found = []
            for tile, warps, stages, rows in tilings:
                tiles = attention.row_tiles(starts, np.full(batch, context, dtype=np.int32), HEADS // KV_HEADS, rows)
                whole = Plan(
                    tables_SB=plan.tables_SB,
                    starts=torch.from_numpy(starts).cuda(),
                    lengths_S=plan.lengths_S,
                    decode_sequences=plan.tile_sequences,
                    tile_sequences=torch.from_numpy(tiles[0]).cuda(),
                    tile_firsts=torch.from_numpy(tiles[1]).cuda(),
                    splits=1,
                    scratch=plan.scratch,
                )
                tiling = Tiling(tile=tile, warps=warps, stages=stages, rows=rows)
                try:
                    us = launch_us(
                        partial(
                            attention.prefill_attention,
                            queries,
                            pool[0],
                            pool[1],
                            out,
                            whole,
                            scale=DIM**-0.5,
                            window=0,
                            tiling=tiling,
                        )
                    )
                except Exception as error:
                    print("  failed", tile, warps, stages, rows, type(error).__name__, str(error)[:80])
                    continue
                found.append((us, (tile, warps, stages, rows)))
            found.sort()
            tflop = 4 * HEADS * DIM * batch * context * (context + 1) / 2 / 1e6
            listed = ", ".join(f"{sizes} {tflop / us:.0f}" for us, sizes in found)
            print(f"prefill {batch}x{context} page {page} TFLOP/s: {listed}", flush=True)


def main() -> None:
    """Run the sweeps named on the command line, or all of them."""
    print(torch.cuda.get_device_name(0))
    for work in sys.argv[1:] or ("linear", "quantized", "decode", "prefill"):
        begin = time.perf_counter()
        {"linear": linears, "quantized": quantized, "decode": decode, "prefill": prefill}[work]()
        print(f"-- {work}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
