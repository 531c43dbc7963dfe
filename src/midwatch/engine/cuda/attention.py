"""Attention of a step over the paged pool: who goes to which kernel, and how its keys are split.

Sequences with one new token go to the split decode kernel, those with more to the tiled one, so a step may hold both.
FlashAttention 3 can take the longer ones instead, where its package is there. The pool of a layer is keys and values of
[blocks, block size, N, D]; legend in `kernels.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from midwatch.engine.batch import Int32
from midwatch.engine.cuda.attention_kernels import (
    decode_attention_kernel,
    merge_splits_kernel,
    prefill_attention_kernel,
)
from midwatch.engine.cuda.launch import launch, power_of_2
from midwatch.errors import SettingsError

LOG2_E = math.log2(math.e)
MAX_SPLITS = 64
MIN_SPLIT_TOKENS = 64
FULL_PROGRAMS, SPLIT_PROGRAMS = 3, 6
"""Decode programs a multiprocessor that keep it busy without splits, and those to aim at where there are fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a kernel is compiled: tokens per tile of keys, warps per program, depth of the load pipeline."""

    tile: int
    warps: int
    stages: int
    rows: int = 0


DECODE_TILING = Tiling(tile=64, warps=2, stages=4)
SPLIT_TILING = Tiling(tile=64, warps=4, stages=3)
PREFILL_TILING = Tiling(tile=64, warps=8, stages=3, rows=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the attention of every layer of one step needs, on the device, int32.

    `decode_sequences` lists sequences with one row; `tile_sequences` and `tile_firsts` list tiles of rows of the
    others: the sequence, and the tile's first row within it. `scratch` holds splits until they are merged.
    """

    tables_SB: torch.Tensor
    starts: torch.Tensor
    lengths_S: torch.Tensor
    decode_sequences: torch.Tensor
    tile_sequences: torch.Tensor
    tile_firsts: torch.Tensor
    splits: int
    scratch: Scratch
    max_rows: int = 1
    max_length: int = 1


@dataclass(frozen=True, slots=True)
class Scratch:
    """Outputs [cells, D], maxima and sums [cells] of splits, float32; a cell is one split of one head of one row."""

    partial: torch.Tensor
    maxima: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def make(cls, cells: int, head_dim: int, device: torch.device) -> Scratch:
        """Room for `cells` splits."""
        partial = torch.empty(cells, head_dim, dtype=torch.float32, device=device)
        return cls(partial, torch.empty(cells, device=device), torch.empty(cells, device=device))


def num_splits(num_sequences: int, num_kv_heads: int, max_length: int, multiprocessors: int) -> int:
    """Into how many parts the keys of a sequence are split: a power of two that fills the GPU, 1 if rows fill it."""
    programs = max(num_sequences * num_kv_heads, 1)
    if programs >= multiprocessors * FULL_PROGRAMS:
        return 1
    wanted = multiprocessors * SPLIT_PROGRAMS / programs
    useful = max_length / MIN_SPLIT_TOKENS
    return 1 << max(0, math.ceil(math.log2(max(1.0, min(wanted, useful, MAX_SPLITS)))))


def row_tiles(starts: Int32, lengths: Int32, group: int, rows: int = PREFILL_TILING.rows) -> tuple[Int32, Int32]:
    """The tiles of sequences with several rows: (sequence, first row within it), those with most keys first."""
    tokens = max(rows // group, 1)
    counts = np.diff(starts)
    many = np.flatnonzero(counts > 1)
    tiles = -(-counts[many] // tokens)
    sequences = np.repeat(many, tiles)
    firsts = (np.arange(sequences.size) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * tokens
    order = np.argsort(-(lengths[sequences] - counts[sequences] + firsts), kind="stable")
    return sequences[order].astype(np.int32), firsts[order].astype(np.int32)


def attend(
    queries_TC: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out_THD: torch.Tensor,
    plan: Plan,
    *,
    scale: float,
    window: int,
    flash: Callable[..., Any] | None = None,
) -> None:
    """Attention of every row of the step. `queries_TC` holds H heads of q first in each row; `window` 0 is all keys."""
    if plan.tile_sequences.numel() and flash is not None:
        _flash_attention(flash, queries_TC, keys, values, out_THD, plan, scale=scale, window=window)
        return
    if plan.decode_sequences.numel():
        decode_attention(queries_TC, keys, values, out_THD, plan, scale=scale, window=window)
    if plan.tile_sequences.numel():
        prefill_attention(queries_TC, keys, values, out_THD, plan, scale=scale, window=window)


def decode_attention(
    queries_TC: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out_THD: torch.Tensor,
    plan: Plan,
    *,
    scale: float,
    window: int,
    tiling: Tiling | None = None,
) -> None:
    """Attention of the rows of `plan.decode_sequences`."""
    tiling = tiling or (DECODE_TILING if plan.splits == 1 else SPLIT_TILING)
    _, page, num_kv_heads, head_dim = keys.shape
    num_heads = out_THD.shape[1]
    group = num_heads // num_kv_heads
    count = plan.decode_sequences.numel()
    scratch = plan.scratch
    assert plan.splits == 1 or scratch.sums.numel() >= count * num_heads * plan.splits, "scratch is too small"
    arguments = (
        queries_TC,
        keys,
        values,
        out_THD,
        scratch.partial,
        scratch.maxima,
        scratch.sums,
        plan.tables_SB,
        plan.starts,
        plan.lengths_S,
        plan.decode_sequences,
        scale * LOG2_E,
        window,
        plan.splits,
        plan.tables_SB.stride(0),
        queries_TC.stride(0),
    )
    launch(
        decode_attention_kernel,
        (num_kv_heads, plan.splits, count),
        arguments,
        GROUP=group,
        GROUP_PADDED=max(16, power_of_2(group)),
        NUM_KV_HEADS=num_kv_heads,
        D=head_dim,
        D_PADDED=power_of_2(head_dim),
        PAGE=page,
        TILE=tiling.tile,
        WHOLE=plan.splits == 1,
        MIN_TILES=max(MIN_SPLIT_TOKENS // tiling.tile, 1),
        PRECISION=precision(keys.dtype),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    if plan.splits > 1:
        launch(
            merge_splits_kernel,
            (num_heads, count),
            (scratch.partial, scratch.maxima, scratch.sums, out_THD, plan.starts, plan.decode_sequences),
            NUM_HEADS=num_heads,
            D=head_dim,
            D_PADDED=power_of_2(head_dim),
            SPLITS=plan.splits,
            num_warps=2,
        )


def prefill_attention(
    queries_TC: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out_THD: torch.Tensor,
    plan: Plan,
    *,
    scale: float,
    window: int,
    tiling: Tiling = PREFILL_TILING,
) -> None:
    """Attention of the rows of `plan`'s tiles, which `row_tiles` made for `tiling.rows`."""
    _, page, num_kv_heads, head_dim = keys.shape
    arguments = (
        queries_TC,
        keys,
        values,
        out_THD,
        plan.tables_SB,
        plan.starts,
        plan.lengths_S,
        plan.tile_sequences,
        plan.tile_firsts,
        scale * LOG2_E,
        window,
        plan.tables_SB.stride(0),
        queries_TC.stride(0),
    )
    launch(
        prefill_attention_kernel,
        (num_kv_heads, plan.tile_sequences.numel()),
        arguments,
        GROUP=out_THD.shape[1] // num_kv_heads,
        NUM_KV_HEADS=num_kv_heads,
        D=head_dim,
        D_PADDED=power_of_2(head_dim),
        PAGE=page,
        ROWS=tiling.rows,
        TILE=tiling.tile if keys.dtype is not torch.float32 and head_dim <= 128 else 32,  # shared memory is 227 KB
        PRECISION=precision(keys.dtype),
        num_warps=tiling.warps,
        num_stages=tiling.stages if head_dim <= 128 else 2,
    )


def precision(dtype: torch.dtype) -> str:
    """float32 is multiplied as float32: tf32 would make the reference path as coarse as what it checks."""
    return "ieee" if dtype is torch.float32 else "tf32"


def find_flash(attention: str) -> Callable[..., Any] | None:
    """FlashAttention 3's paged function if it is wanted and there; None for our kernels.

    Raises `SettingsError` if `fa3` was asked for and no package has it.
    """
    if attention == "triton":
        return None
    try:
        from flash_attn_interface import flash_attn_with_kvcache
    except ImportError:
        pass
    else:
        return _Upstream(flash_attn_with_kvcache)
    try:
        from vllm.vllm_flash_attn import flash_attn_varlen_func
    except ImportError:
        if attention == "auto":
            return None
        raise SettingsError(
            "engine.attention is fa3, but neither flash_attn_interface nor vllm.vllm_flash_attn can be imported.",
            "Install FlashAttention 3, or set engine.attention to triton.",
        ) from None
    return _Vllm(flash_attn_varlen_func)


@dataclass(frozen=True, slots=True)
class _Vllm:
    """vLLM's build of FlashAttention 3."""

    function: Callable[..., Any]

    def __call__(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **shape: Any) -> torch.Tensor:
        out: torch.Tensor = self.function(
            q,
            keys,
            values,
            max_seqlen_q=shape["max_rows"],
            cu_seqlens_q=shape["starts"],
            max_seqlen_k=shape["max_length"],
            seqused_k=shape["lengths"],
            block_table=shape["tables"],
            softmax_scale=shape["scale"],
            causal=True,
            window_size=shape["window"],
            fa_version=3,
        )
        return out


@dataclass(frozen=True, slots=True)
class _Upstream:
    """The package `flash_attn_interface`, built from FlashAttention's own repository."""

    function: Callable[..., Any]

    def __call__(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **shape: Any) -> torch.Tensor:
        out: torch.Tensor = self.function(
            q,
            keys,
            values,
            cache_seqlens=shape["lengths"],
            page_table=shape["tables"],
            cu_seqlens_q=shape["starts"],
            max_seqlen_q=shape["max_rows"],
            softmax_scale=shape["scale"],
            causal=True,
            window_size=tuple(shape["window"]),
        )
        return out


def _flash_attention(
    flash: Callable[..., Any],
    queries_TC: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out_THD: torch.Tensor,
    plan: Plan,
    *,
    scale: float,
    window: int,
) -> None:
    """All rows of the step in one call of FlashAttention 3, single tokens among them."""
    num_tokens, num_heads, head_dim = out_THD.shape
    q_THD = queries_TC[:, : num_heads * head_dim].view(num_tokens, num_heads, head_dim)
    out = flash(
        q_THD,
        keys,
        values,
        starts=plan.starts,
        lengths=plan.lengths_S,
        tables=plan.tables_SB,
        max_rows=plan.max_rows,
        max_length=plan.max_length,
        scale=scale,
        window=[window - 1, 0] if window else [-1, -1],
    )
    out_THD.copy_(out)
