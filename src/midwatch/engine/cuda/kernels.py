"""The small kernels of a decoder layer: embedding, residual and norm, activation, rotation and cache write.

Each fuses what would otherwise read and write the hidden states again. Arithmetic is float32, storage the model's
dtype. Sources: RMSNorm, Zhang and Sennrich (arXiv 1910.07467), eq. 4; rotary embedding, Su et al. (arXiv 2104.09864),
eq. 34, with dimension j of a head turning with dimension j + D / 2; gated units, Shazeer (arXiv 2002.05202), eq. 6.
Legend: T tokens, K hidden size, I inner size, H query heads, N kv heads, D head size, V vocabulary, P positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from midwatch.engine.cuda.launch import cdiv, launch, power_of_2

HEADS_PER_PROGRAM = 8
ARGMAX_BLOCK = 4096


def embed(
    token_ids_T: torch.Tensor,
    previous_rows_T: torch.Tensor,
    previous_ids: torch.Tensor,
    table_VK: torch.Tensor,
    scale: float,
    out_TK: torch.Tensor,
) -> None:
    """Look up the token ids; where `previous_rows_T` is not -1, the id is `previous_ids` at that index instead."""
    num_tokens, columns = out_TK.shape
    block = min(power_of_2(columns), 1024)
    grid = (num_tokens, cdiv(columns, block))
    launch(_embed, grid, (token_ids_T, previous_rows_T, previous_ids, table_VK, out_TK, scale, columns), BLOCK=block)


def add_norm(
    delta_TK: torch.Tensor | None,
    residual_TK: torch.Tensor,
    weight_K: torch.Tensor,
    eps: float,
    out_TK: torch.Tensor,
    *,
    post_weight_K: torch.Tensor | None = None,
) -> None:
    """residual += delta (normalised by `post_weight_K` first, if given); out = norm(residual)."""
    rows, columns = residual_TK.shape
    block = power_of_2(columns)
    arrays = (
        residual_TK if delta_TK is None else delta_TK,
        residual_TK,
        weight_K,
        weight_K if post_weight_K is None else post_weight_K,
        out_TK,
    )
    launch(
        _add_norm,
        (rows,),
        (*arrays, columns, eps),
        ADD=delta_TK is not None,
        POST=post_weight_K is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )


def activate(gate_up_T2I: torch.Tensor, out_TI: torch.Tensor, activation: str) -> None:
    """out = act(gate) · up, `act` being `silu` or `gelu_tanh`; gate is the first half of a row."""
    rows, columns = out_TI.shape
    block = min(power_of_2(columns), 2048)
    launch(
        _activate,
        (rows, cdiv(columns, block)),
        (gate_up_T2I, out_TI, columns),
        GELU=activation == "gelu_tanh",
        BLOCK=block,
    )


def rotate_and_store(
    qkv_TC: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    *,
    num_heads: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """Normalise (if `norms`, of q and k, are given) and rotate q in place; put k, rotated, and v into the pool.

    `qkv_TC` holds H heads of q, N of k and N of v in a row; `keys` and `values` are [blocks, block size, N, D];
    `cos_PD` and `sin_PD` are float32 [P, D / 2].
    """
    _, _, num_kv_heads, head_dim = keys.shape
    q_parts = cdiv(num_heads, HEADS_PER_PROGRAM)
    kv_parts = cdiv(num_kv_heads, HEADS_PER_PROGRAM)
    q_norm, k_norm = norms or (cos_PD, cos_PD)
    launch(
        _rotate_and_store,
        (qkv_TC.shape[0], q_parts + 2 * kv_parts),
        (qkv_TC, keys, values, positions_T, slots_T, cos_PD, sin_PD, q_norm, k_norm, eps),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=head_dim // 2,
        HALF_PADDED=power_of_2(head_dim // 2),
        HEADS=HEADS_PER_PROGRAM,
        QK_NORM=norms is not None,
        num_warps=2,
    )


def argmax(logits_RV: torch.Tensor, out_R: torch.Tensor) -> None:
    """The index of each row's largest number, the first of equals, int64."""
    rows, columns = logits_RV.shape
    parts = cdiv(columns, ARGMAX_BLOCK)
    values = torch.empty(rows, parts, dtype=torch.float32, device=logits_RV.device)
    places = torch.empty(rows, parts, dtype=torch.int32, device=logits_RV.device)
    launch(_argmax_parts, (parts, rows), (logits_RV, values, places, columns), BLOCK=ARGMAX_BLOCK)
    launch(_argmax, (rows,), (values, places, out_R, parts), BLOCK=power_of_2(parts), num_warps=1)


@triton.jit
def gated(gate, up, GELU: tl.constexpr):
    """act(gate) · up in float32."""
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return gate * tl.sigmoid(2.0 * inner) * up  # 0.5 · (1 + tanh(z)) = sigmoid(2z)
    else:
        return gate * tl.sigmoid(gate) * up


@triton.jit
def _embed(token_ids, previous_rows, previous_ids, table, out, scale, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    token = tl.load(token_ids + row).to(tl.int64)
    previous = tl.load(previous_rows + row)
    token = tl.where(previous >= 0, tl.load(previous_ids + tl.maximum(previous, 0)).to(tl.int64), token)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(table + token * columns + k, mask=k < columns).to(tl.float32) * scale
    tl.store(out + row.to(tl.int64) * columns + k, x.to(out.dtype.element_ty), mask=k < columns)


@triton.jit
def _add_norm(
    delta,
    residual,
    weight,
    post_weight,
    out,
    columns,
    eps,
    ADD: tl.constexpr,
    POST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * columns
    k = tl.arange(0, BLOCK)
    inside = k < columns
    w = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(residual + start + k, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        d = tl.load(delta + start + k, mask=inside, other=0.0).to(tl.float32)
        if POST:
            d = d * tl.rsqrt(tl.sum(d * d, 0) / columns + eps)
            d = d * tl.load(post_weight + k, mask=inside, other=0.0).to(tl.float32)
            d = d.to(residual.dtype.element_ty).to(tl.float32)
        x = (x + d).to(residual.dtype.element_ty)
        tl.store(residual + start + k, x, mask=inside)
        x = x.to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / columns + eps) * w
    tl.store(out + start + k, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _activate(gate_up, out, columns, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < columns
    gate = tl.load(gate_up + row * 2 * columns + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * columns + columns + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + i, gated(gate, up, GELU).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(first, second, cos, sin, norm, eps, j, inside, HALF: tl.constexpr, QK_NORM: tl.constexpr):
    if QK_NORM:
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        factor = tl.rsqrt(square / (2 * HALF) + eps)[:, None]
        first = first * factor * tl.load(norm + j, mask=inside, other=0.0).to(tl.float32)[None, :]
        second = second * factor * tl.load(norm + HALF + j, mask=inside, other=0.0).to(tl.float32)[None, :]
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _rotate_and_store(
    qkv,
    keys,
    values,
    positions,
    slots,
    cos_table,
    sin_table,
    q_norm,
    k_norm,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    QK_NORM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    Q_PARTS: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    KV_PARTS: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    D: tl.constexpr = 2 * HALF
    j = tl.arange(0, HALF_PADDED)
    inside = j < HALF
    position = tl.load(positions + row)
    slot = tl.load(slots + row).to(tl.int64)
    cos = tl.load(cos_table + position * HALF + j, mask=inside, other=0.0)[None, :]
    sin = tl.load(sin_table + position * HALF + j, mask=inside, other=0.0)[None, :]
    qkv += row * (NUM_HEADS + 2 * NUM_KV_HEADS) * D
    if part < Q_PARTS:
        head = part * HEADS + tl.arange(0, HEADS)
        source = qkv + head[:, None] * D + j[None, :]
        mask = (head < NUM_HEADS)[:, None] & inside[None, :]
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
        first, second = _rotate(first, second, cos, sin, q_norm, eps, j, inside, HALF, QK_NORM)
        tl.store(source, first.to(qkv.dtype.element_ty), mask=mask)
        tl.store(source + HALF, second.to(qkv.dtype.element_ty), mask=mask)
    elif part < Q_PARTS + KV_PARTS:
        head = (part - Q_PARTS) * HEADS + tl.arange(0, HEADS)
        mask = (head < NUM_KV_HEADS)[:, None] & inside[None, :]
        source = qkv + NUM_HEADS * D + head[:, None] * D + j[None, :]
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
        first, second = _rotate(first, second, cos, sin, k_norm, eps, j, inside, HALF, QK_NORM)
        target = keys + slot * NUM_KV_HEADS * D + head[:, None] * D + j[None, :]
        tl.store(target, first.to(keys.dtype.element_ty), mask=mask)
        tl.store(target + HALF, second.to(keys.dtype.element_ty), mask=mask)
    else:
        head = (part - Q_PARTS - KV_PARTS) * HEADS + tl.arange(0, HEADS)
        mask = (head < NUM_KV_HEADS)[:, None] & inside[None, :]
        source = qkv + (NUM_HEADS + NUM_KV_HEADS) * D + head[:, None] * D + j[None, :]
        target = values + slot * NUM_KV_HEADS * D + head[:, None] * D + j[None, :]
        tl.store(target, tl.load(source, mask=mask, other=0.0), mask=mask)
        tl.store(target + HALF, tl.load(source + HALF, mask=mask, other=0.0), mask=mask)


@triton.jit
def _argmax_parts(logits, values, places, columns, BLOCK: tl.constexpr):
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    v = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * columns + v, mask=v < columns, other=-float("inf"))
    value, place = tl.max(x, 0, return_indices=True)
    cell = row * tl.num_programs(0) + part
    tl.store(values + cell, value)
    tl.store(places + cell, part * BLOCK + place)


@triton.jit
def _argmax(values, places, out, parts, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK)
    x = tl.load(values + row * parts + part, mask=part < parts, other=-float("inf"))
    _, best = tl.max(x, 0, return_indices=True)
    tl.store(out + row, tl.load(places + row * parts + best).to(tl.int64))
