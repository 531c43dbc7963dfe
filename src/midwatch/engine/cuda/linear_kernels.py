"""Matrix products of a few rows, bound by how fast the weights stream, and the unpacking of quantized weights.

`rows_kernel` multiplies up to 64 rows on the matrix units, `row_kernel` one row by plain multiply-adds. Both can
normalise their input (the factor of RMSNorm is a number per row, so it is applied to the finished product), act and
gate, add a bias, and add to the residual, which saves a kernel and a trip through memory each.
Legend: M rows, N outputs, K inputs; weights are [N, K]. Eight-bit codes are signed, w = code · scale. Of four-bit codes
a byte holds w[j] low and w[j + K / 2] high, w = code · scale + minimum; scales are [N, K / GROUP].
"""

from __future__ import annotations

import triton
import triton.language as tl

from midwatch.engine.cuda.kernels import gated, wait_for_predecessor


@triton.jit
def _spread(numbers, n, group, inside, groups, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr):
    """A scale or minimum per weight of a tile, from one per group: [BLOCK_N, BLOCK_K], float32."""
    g = group + tl.arange(0, BLOCK_K // GROUP)
    tile = tl.load(numbers + n[:, None] * groups + g[None, :], mask=(g < inside)[None, :], other=0.0).to(tl.float32)
    wide = tl.broadcast_to(tile[:, :, None], [BLOCK_N, BLOCK_K // GROUP, GROUP])
    return tl.reshape(wide, [BLOCK_N, BLOCK_K])


@triton.jit
def _tile(
    weight, scales, minima, n, start, K,
    HALF: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Weights [BLOCK_N, BLOCK_K] from column `start` on (four bits: of the low or, with HALF = 1, the high nibbles)."""
    j = start + tl.arange(0, BLOCK_K)
    width = K // 2 if BITS == 4 else K
    place = weight + n[:, None] * width + j[None, :]
    if EVEN:
        codes = tl.load(place)
    else:
        codes = tl.load(place, mask=(j < width)[None, :], other=0)
    if BITS == 16:
        return codes
    else:
        groups = K // GROUP
        first = start // GROUP + HALF * (groups // 2)
        last = groups if BITS == 8 or HALF == 1 else groups // 2
        scale = _spread(scales, n, first, last, groups, BLOCK_N, BLOCK_K, GROUP)
        if BITS == 8:
            return codes.to(tl.float32) * scale
        else:
            nibble = (codes >> 4) if HALF == 1 else (codes & 15)
            return nibble.to(tl.float32) * scale + _spread(minima, n, first, last, groups, BLOCK_N, BLOCK_K, GROUP)


@triton.jit
def _input(x, norm, m, start, K, rows, width, stride, BLOCK_K: tl.constexpr, NORMED: tl.constexpr, EVEN: tl.constexpr):
    """A tile [M, BLOCK_K] of the input times the norm's weight, and each row's sum of squares."""
    k = start + tl.arange(0, BLOCK_K)
    mask = (m < rows)[:, None]
    if not EVEN:
        mask = mask & (k < width)[None, :]
    tile = tl.load(x + m[:, None] * stride + k[None, :], mask=mask, other=0.0)
    if NORMED:
        numbers = tile.to(tl.float32)
        weight = tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        return (numbers * weight[None, :]).to(tile.dtype), tl.sum(numbers * numbers, 1)
    else:
        return tile, tl.zeros([m.shape[0]], tl.float32)


@triton.jit(do_not_specialize=["rows"])
def rows_kernel(
    x,
    weight,
    scales,
    minima,
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
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out[m, n] for BLOCK_N outputs n of all rows; the product is transposed, so that weights fill the matrix unit."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = tl.minimum(n, N - 1).to(tl.int64)
    m = tl.arange(0, ROWS)
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
    acc_up = tl.zeros([BLOCK_N, ROWS], tl.float32)
    square = tl.zeros([ROWS], tl.float32)
    width = K // 2 if BITS == 4 else K
    wait_for_predecessor(EARLY)
    for start in range(0, width, BLOCK_K):
        low, low_square = _input(x, norm, m, start, K, rows, width, stride, BLOCK_K, NORMED, EVEN)
        square += low_square
        w = _tile(weight, scales, minima, n_inside, start, K, 0, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN)
        acc = tl.dot(w.to(low.dtype), tl.trans(low), acc, input_precision=PRECISION)
        if GATED:
            w = _tile(weight, scales, minima, n_inside + N, start, K, 0, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN)
            acc_up = tl.dot(w.to(low.dtype), tl.trans(low), acc_up, input_precision=PRECISION)
        if BITS == 4:
            high, high_square = _input(
                x + width, norm + width, m, start, width, rows, width, stride, BLOCK_K, NORMED, EVEN
            )
            square += high_square
            w = _tile(weight, scales, minima, n_inside, start, K, 1, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN)
            acc = tl.dot(w.to(low.dtype), tl.trans(high), acc, input_precision=PRECISION)
            if GATED:
                w = _tile(weight, scales, minima, n_inside + N, start, K, 1, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN)
                acc_up = tl.dot(w.to(low.dtype), tl.trans(high), acc_up, input_precision=PRECISION)
    if NORMED:
        factor = tl.rsqrt(square / K + eps)[None, :]
        acc = acc * factor
        acc_up = acc_up * factor
    if BIAS:
        acc += tl.load(bias + n_inside).to(tl.float32)[:, None]
    if GATED:
        acc = gated(acc, acc_up, GELU)
    place = out + m[None, :].to(tl.int64) * N + n[:, None]
    mask = (n < N)[:, None] & (m < rows)[None, :]
    if ADD:
        acc += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def row_kernel(
    x,
    weight,
    scales,
    minima,
    norm,
    bias,
    out,
    eps,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    EARLY: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same for one row."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = tl.minimum(n, N - 1).to(tl.int64)
    one = tl.arange(0, 1)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    square = tl.zeros([1], tl.float32)
    width = K // 2 if BITS == 4 else K
    wait_for_predecessor(EARLY)
    for start in tl.range(0, width, BLOCK_K, num_stages=STAGES):
        low, low_square = _input(x, norm, one, start, K, 1, width, 0, BLOCK_K, NORMED, EVEN)
        square += low_square
        low = low.to(tl.float32)
        acc += low * _tile(
            weight, scales, minima, n_inside, start, K, 0, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN
        ).to(tl.float32)  # fmt: skip
        if GATED:
            acc_up += low * _tile(
                weight, scales, minima, n_inside + N, start, K, 0, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN
            ).to(tl.float32)  # fmt: skip
        if BITS == 4:
            high, high_square = _input(x + width, norm + width, one, start, width, 1, width, 0, BLOCK_K, NORMED, EVEN)
            square += high_square
            high = high.to(tl.float32)
            acc += high * _tile(weight, scales, minima, n_inside, start, K, 1, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN)
            if GATED:
                acc_up += high * _tile(
                    weight, scales, minima, n_inside + N, start, K, 1, BITS, GROUP, BLOCK_N, BLOCK_K, EVEN
                )
    y = tl.sum(acc, 1)
    y_up = tl.sum(acc_up, 1)
    if NORMED:
        factor = tl.rsqrt(tl.sum(square, 0) / K + eps)
        y = y * factor
        y_up = y_up * factor
    if BIAS:
        y += tl.load(bias + n_inside).to(tl.float32)
    if GATED:
        y = gated(y, y_up, GELU)
    if ADD:
        y += tl.load(out + n_inside).to(tl.float32)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=n < N)


@triton.jit
def dequantize_kernel(
    weight,
    scales,
    minima,
    out,
    K,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program per (row, block of codes): the weights themselves."""
    n = tl.program_id(0).to(tl.int64) + tl.zeros([1], tl.int64)
    width = K // 2 if BITS == 4 else K
    start = tl.program_id(1) * BLOCK_K
    j = start + tl.arange(0, BLOCK_K)
    place = out + n[:, None] * K + j[None, :]
    mask = (j < width)[None, :]
    w = _tile(weight, scales, minima, n, start, K, 0, BITS, GROUP, 1, BLOCK_K, False)
    tl.store(place, w.to(out.dtype.element_ty), mask=mask)
    if BITS == 4:
        w = _tile(weight, scales, minima, n, start, K, 1, BITS, GROUP, 1, BLOCK_K, False)
        tl.store(place + width, w.to(out.dtype.element_ty), mask=mask)
