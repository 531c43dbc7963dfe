"""What this GPU can do at most, and what our attention reaches beside FlashAttention 3. Called by `gpu_engine.py`.

Shapes are Llama-3-8B's: 32 query heads, 8 kv heads, head size 128, bfloat16. Bytes are those of the keys and values
that must be read; operations those of the causal half. Pages are shuffled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from triton.testing import do_bench

from midwatch import results
from midwatch.engine.cuda import attention
from midwatch.engine.cuda.attention import Plan, Scratch

HEADS, KV_HEADS, DIM = 32, 8, 128
MULTIPROCESSORS = 132
PEER = "FlashAttention 3 (vLLM 0.26)"


def rows() -> list[results.Row]:
    """Ceilings, decode attention per page size, prefill attention."""
    found = [_copy(), _matmul()]
    for batch, context in ((64, 8192), (8, 4096), (256, 1024), (1, 4096)):
        for page in (16, 32, 64, 128, 256):
            found.append(_decode(batch, context, page))
    for batch, context in ((4, 4096), (16, 1024)):
        for page in (16, 64):
            found.append(_prefill(batch, context, page))
    for row in found:
        beside = f" beside {row.peer_value:.0f} ({row.ratio:.2f})" if row.peer_value and row.ratio else ""
        print(f"{row.name}: {row.value:.0f} {row.unit}{beside}", flush=True)
    return found


def times_ms(call: Callable[[], object]) -> list[float]:
    """Median milliseconds with a cold cache, three times over."""
    return [float(do_bench(call, warmup=10, rep=60, return_mode="median")) for _ in range(3)]


def decode_case(batch: int, context: int, page: int, splits: int) -> tuple[torch.Tensor, torch.Tensor, Plan]:
    """Queries, a pool, and the plan of one decode step over shuffled pages."""
    pages = -(-context // page)
    pool = torch.randn(2, batch * pages, page, KV_HEADS, DIM, dtype=torch.bfloat16, device="cuda")
    queries = torch.randn(batch, HEADS * DIM, dtype=torch.bfloat16, device="cuda")
    numbers = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
    plan = Plan(
        tables_SB=torch.randperm(batch * pages, device="cuda").int().view(batch, pages),
        starts=numbers,
        lengths_S=torch.full((batch,), context, dtype=torch.int32, device="cuda"),
        decode_sequences=numbers[:batch],
        tile_sequences=numbers[:0],
        tile_firsts=numbers[:0],
        splits=splits,
        scratch=Scratch.make(batch * HEADS * splits, DIM, torch.device("cuda")),
        max_length=context,
    )
    return queries, pool, plan


def prefill_case(counts: Sequence[int], lengths: Sequence[int], page: int) -> tuple[torch.Tensor, torch.Tensor, Plan]:
    """Queries with `counts` rows a sequence, which are the last of `lengths` positions; a pool; the plan."""
    pages = -(-max(lengths) // page)
    batch = len(counts)
    pool = torch.randn(2, batch * pages, page, KV_HEADS, DIM, dtype=torch.bfloat16, device="cuda")
    queries = torch.randn(sum(counts), (HEADS + 2 * KV_HEADS) * DIM, dtype=torch.bfloat16, device="cuda")
    starts = np.cumsum([0, *counts]).astype(np.int32)
    tiles = attention.row_tiles(starts, np.array(lengths, dtype=np.int32), HEADS // KV_HEADS)
    single = np.flatnonzero(np.array(counts) == 1).astype(np.int32)
    plan = Plan(
        tables_SB=torch.randperm(batch * pages, device="cuda").int().view(batch, pages),
        starts=torch.from_numpy(starts).cuda(),
        lengths_S=torch.tensor(lengths, dtype=torch.int32, device="cuda"),
        decode_sequences=torch.from_numpy(single).cuda(),
        tile_sequences=torch.from_numpy(tiles[0]).cuda(),
        tile_firsts=torch.from_numpy(tiles[1]).cuda(),
        splits=4,
        scratch=Scratch.make(batch * HEADS * 4, DIM, torch.device("cuda")),
        max_rows=max(counts),
        max_length=max(lengths),
    )
    return queries, pool, plan


def _copy() -> results.Row:
    x = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return results.row(
        "copy of 4 GiB, bytes read and written",
        [2 * x.numel() / ms / 1e6 for ms in times_ms(lambda: y.copy_(x))],
        "GB/s",
    )


def _matmul() -> results.Row:
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return results.row(
        "bf16 matrix product 8192³", [2 * 8192**3 / ms / 1e9 for ms in times_ms(lambda: a @ b)], "TFLOP/s"
    )


def _decode(batch: int, context: int, page: int) -> results.Row:
    splits = attention.num_splits(batch, KV_HEADS, context, MULTIPROCESSORS)
    queries, pool, plan = decode_case(batch, context, page, splits)
    out = torch.empty(batch, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
    options = {"scale": DIM**-0.5, "window": 0}
    gb = 2 * batch * context * KV_HEADS * DIM * 2 / 1e6
    ours = times_ms(lambda: attention.decode_attention(queries, pool[0], pool[1], out, plan, **options))
    theirs = _flash_ms(queries, pool, out, plan)
    name = f"decode attention {batch} × {context:,} tokens, page {page}"
    return _beside(name, ours, theirs, work=gb, unit="KV GB/s", aim=0.9 if batch > 1 else None)


def _prefill(batch: int, context: int, page: int) -> results.Row:
    queries, pool, plan = prefill_case([context] * batch, [context] * batch, page)
    out = torch.empty(batch * context, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
    options = {"scale": DIM**-0.5, "window": 0}
    tflop = 4 * HEADS * DIM * batch * context * (context + 1) / 2 / 1e9
    ours = times_ms(lambda: attention.prefill_attention(queries, pool[0], pool[1], out, plan, **options))
    theirs = _flash_ms(queries, pool, out, plan)
    return _beside(
        f"prefill attention {batch} × {context:,} tokens, page {page}",
        ours,
        theirs,
        work=tflop,
        unit="TFLOP/s",
        aim=None,
    )


def _flash_ms(queries: torch.Tensor, pool: torch.Tensor, out: torch.Tensor, plan: Plan) -> list[float]:
    try:
        flash = attention.find_flash("fa3")
    except Exception:  # not on this machine: no peer
        return []
    assert flash is not None
    q = queries[:, : HEADS * DIM].view(-1, HEADS, DIM)
    shape = {"starts": plan.starts, "lengths": plan.lengths_S, "tables": plan.tables_SB, "max_rows": plan.max_rows}
    shape |= {"max_length": plan.max_length, "scale": DIM**-0.5, "window": [-1, -1]}
    return times_ms(lambda: flash(q, pool[0], pool[1], **shape))


def _beside(
    name: str, ours_ms: list[float], theirs_ms: list[float], *, work: float, unit: str, aim: float | None
) -> results.Row:
    theirs = [work / ms for ms in theirs_ms]
    target = aim * statistics.median(theirs) if aim and theirs else None
    return results.row(
        name,
        [work / ms for ms in ours_ms],
        unit,
        target=target,
        direction="at_least" if target else None,
        peer=PEER if theirs else None,
        peer_samples=theirs,
        note="launched one at a time: what starting it costs on the host is inside" if max(ours_ms) < 0.1 else "",
    )
