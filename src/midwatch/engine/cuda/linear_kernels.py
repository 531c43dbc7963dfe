"""Matrix products of a few rows with plain weights, bound by how fast those stream.

`rows_kernel` multiplies up to 64 rows on the matrix units, `row_kernel` one row by plain multiply-adds. Both can
normalise their input (the factor of RMSNorm is a number per row, so it is applied to the finished product), act and
gate, add a bias, and add to the residual, which saves a kernel and a trip through memory each.
Legend: M rows, N outputs, K inputs; weights are [N, K]. `quantized_kernels.py` holds the same for quantized weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midwatch.engine.cuda.kernels import gated


@triton.jit
def load_tile(place, k, K, EVEN: tl.constexpr):
    """A tile of weights; columns past K are 0."""
    return tl.load(place) if EVEN else tl.load(place, mask=(k < K)[None, :], other=0)


@triton.jit
def load_input(x, norm, m, k, rows, K, stride, NORMED: tl.constexpr, EVEN: tl.constexpr):
    """A tile [M, BLOCK_K] of the input times the norm's weight, and each row's sum of squares."""
    mask = (m < rows)[:, None]
    if not EVEN:
        mask = mask & (k < K)[None, :]
    tile = tl.load(x + m[:, None] * stride + k[None, :], mask=mask, other=0.0)
    if NORMED:
        numbers = tile.to(tl.float32)
        weight = tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        return (numbers * weight[None, :]).to(tile.dtype), tl.sum(numbers * numbers, 1)
    else:
        return tile, tl.zeros([m.shape[0]], tl.float32)


@triton.jit
def finish_rows(
    acc,
    acc_up,
    square,
    bias,
    out,
    n,
    m,
    eps,
    rows,
    N,
    K,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
):
    """Norm, bias, gate and residual around a finished product [N, M]; stores it."""
    if NORMED:
        factor = tl.rsqrt(square / K + eps)[None, :]
        acc = acc * factor
        acc_up = acc_up * factor
    if BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        acc = gated(acc, acc_up, GELU)
    place = out + m[None, :].to(tl.int64) * N + n[:, None]
    mask = (n < N)[:, None] & (m < rows)[None, :]
    if ADD:
        acc += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def finish_row(
    y,
    y_up,
    square,
    bias,
    out,
    n,
    eps,
    N,
    K,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
):
    """The same for one row, [N]."""
    if NORMED:
        factor = tl.rsqrt(square / K + eps)
        y = y * factor
        y_up = y_up * factor
    if BIAS:
        y += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if GATED:
        y = gated(y, y_up, GELU)
    if ADD:
        y += tl.load(out + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=["rows"])
def rows_kernel(
    x,
    weight,
    norm,
    bias,
    out,
    eps,
    rows,
    N,
    K,
    stride,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[m, n] for BLOCK_N outputs n of all rows; the product is transposed, so that weights fill the matrix unit."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_of_weight = weight + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K
    m = tl.arange(0, ROWS)
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
    acc_up = tl.zeros([BLOCK_N, ROWS], tl.float32)
    square = tl.zeros([ROWS], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tile, tile_square = load_input(x, norm, m, k, rows, K, stride, NORMED, EVEN)
        square += tile_square
        w = load_tile(row_of_weight + k[None, :], k, K, EVEN)
        acc = tl.dot(w, tl.trans(tile), acc, input_precision=PRECISION)
        if GATED:
            w = load_tile(row_of_weight + N.to(tl.int64) * K + k[None, :], k, K, EVEN)
            acc_up = tl.dot(w, tl.trans(tile), acc_up, input_precision=PRECISION)
    finish_rows(acc, acc_up, square, bias, out, n, m, eps, rows, N, K, NORMED, GATED, GELU, BIAS, ADD)


@triton.jit
def row_kernel(
    x,
    weight,
    norm,
    bias,
    out,
    eps,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same for one row. Sums stay spread over the tile until the end: one reduction a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_of_weight = weight + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K
    one = tl.arange(0, 1)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    square = tl.zeros([1], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        tile, tile_square = load_input(x, norm, one, k, 1, K, 0, NORMED, EVEN)
        square += tile_square
        acc += tile.to(tl.float32) * load_tile(row_of_weight + k[None, :], k, K, EVEN).to(tl.float32)
        if GATED:
            w = load_tile(row_of_weight + N.to(tl.int64) * K + k[None, :], k, K, EVEN)
            acc_up += tile.to(tl.float32) * w.to(tl.float32)
    finish_row(
        tl.sum(acc, 1), tl.sum(acc_up, 1), tl.sum(square, 0), bias, out, n, eps, N, K, NORMED, GATED, GELU, BIAS, ADD
    )
