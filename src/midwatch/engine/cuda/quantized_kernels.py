"""Matrix products of a few rows with weights of eight or four bits, and the unpacking of those for many rows.

Eight-bit codes are w = (code - 128) · scale, four-bit ones w = code · scale + minimum; of the latter a byte holds w[j]
low and w[j + K / 2] high. Scales and minima are float16 [N, K / GROUP]. A code becomes a number without a conversion,
which would be the slowest instruction here: its bits are put below a float32's exponent, which gives 1 + code / 2^b
exactly, and the group's scale and minimum are changed to fit. Tiles have a dimension for groups, [N, groups, GROUP], so
that a scale is loaded once. Legend and what stands around the product: `linear_kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midwatch.engine.cuda.linear_kernels import finish_row, finish_rows

ONE = tl.constexpr(0x3F800000)  # the bits of 1.0


@triton.jit
def _numbers(
    codes, scales, minima, n, first, groups,
    HIGH: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Weights [N, G, GROUP], float32, of a tile of codes whose groups are `first` and the next G of `groups`."""
    g = first + tl.arange(0, G)
    mask = (g < groups)[None, :]
    scale = tl.load(scales + n[:, None] * groups + g[None, :], mask=mask, other=0.0).to(tl.float32)
    if BITS == 8:
        bits = (codes.to(tl.uint32) << 15) | ONE
        step = 256.0 * scale
        base = -128.0 * scale - step
    else:
        minimum = tl.load(minima + n[:, None] * groups + g[None, :], mask=mask, other=0.0).to(tl.float32)
        shifted = (codes.to(tl.uint32) << 15) if HIGH else (codes.to(tl.uint32) << 19)
        bits = (shifted & 0x780000) | ONE
        step = 16.0 * scale
        base = minimum - step
    return bits.to(tl.float32, bitcast=True) * step[:, :, None] + base[:, :, None]


@triton.jit
def _codes(row_of_weight, start, width, G: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr):
    """A tile of codes, [N, G, GROUP]; columns past `width` are 0."""
    j = start + tl.arange(0, G)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    place = row_of_weight[:, None, None] + j[None, :, :]
    return tl.load(place) if EVEN else tl.load(place, mask=(j < width)[None, :, :], other=0)


@triton.jit
def _input_row(x, norm, start, width, G: tl.constexpr, GROUP: tl.constexpr, NORMED: tl.constexpr, EVEN: tl.constexpr):
    """A tile [G, GROUP] of the input times the norm's weight, float32, and its squares."""
    k = start + tl.arange(0, G)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = k < width
    numbers = (tl.load(x + k) if EVEN else tl.load(x + k, mask=inside, other=0.0)).to(tl.float32)
    if NORMED:
        return numbers * tl.load(norm + k, mask=inside, other=0.0).to(tl.float32), numbers * numbers
    else:
        return numbers, numbers


@triton.jit
def quantized_row_kernel(
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
    G: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`row_kernel` with G groups of codes at a time."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = tl.minimum(n, N - 1).to(tl.int64)
    width = K // 2 if BITS == 4 else K
    groups = K // GROUP
    rows = weight + n_inside * width
    acc = tl.zeros([BLOCK_N, G, GROUP], tl.float32)
    acc_up = tl.zeros([BLOCK_N, G, GROUP], tl.float32)
    square = tl.zeros([G, GROUP], tl.float32)
    for start in tl.range(0, width, G * GROUP, num_stages=STAGES):
        first = start // GROUP
        low, squares = _input_row(x, norm, start, width, G, GROUP, NORMED, EVEN)
        if NORMED:
            square += squares
        codes = _codes(rows, start, width, G, GROUP, EVEN)
        acc += low[None, :, :] * _numbers(codes, scales, minima, n_inside, first, groups, False, BITS, G)
        if GATED:
            codes_up = _codes(rows + N.to(tl.int64) * width, start, width, G, GROUP, EVEN)
            w = _numbers(codes_up, scales, minima, n_inside + N, first, groups, False, BITS, G)
            acc_up += low[None, :, :] * w
        if BITS == 4:
            high, squares = _input_row(x + width, norm + width, start, width, G, GROUP, NORMED, EVEN)
            if NORMED:
                square += squares
            half = first + groups // 2
            acc += high[None, :, :] * _numbers(codes, scales, minima, n_inside, half, groups, True, BITS, G)
            if GATED:
                w = _numbers(codes_up, scales, minima, n_inside + N, half, groups, True, BITS, G)
                acc_up += high[None, :, :] * w
    finish_row(
        tl.sum(tl.sum(acc, 2), 1), tl.sum(tl.sum(acc_up, 2), 1), tl.sum(tl.sum(square, 1), 0), bias, out, n, eps, N, K,
        NORMED, GATED, GELU, BIAS, ADD,
    )  # fmt: skip


@triton.jit
def _input_rows(x, m, start, rows, width, stride, BLOCK_K: tl.constexpr, EVEN: tl.constexpr):
    k = start + tl.arange(0, BLOCK_K)
    mask = (m < rows)[:, None]
    if not EVEN:
        mask = mask & (k < width)[None, :]
    return tl.load(x + m[:, None] * stride + k[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["rows"])
def quantized_rows_kernel(
    x,
    weight,
    scales,
    minima,
    bias,
    out,
    rows,
    N,
    K,
    stride,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    G: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`rows_kernel` with G groups of codes at a time; the input is normalised before."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = tl.minimum(n, N - 1).to(tl.int64)
    BLOCK_K: tl.constexpr = G * GROUP
    width = K // 2 if BITS == 4 else K
    groups = K // GROUP
    codes_of_row = weight + n_inside * width
    m = tl.arange(0, ROWS)
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
    acc_up = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for start in range(0, width, BLOCK_K):
        first = start // GROUP
        tile = _input_rows(x, m, start, rows, width, stride, BLOCK_K, EVEN)
        codes = _codes(codes_of_row, start, width, G, GROUP, EVEN)
        w = _numbers(codes, scales, minima, n_inside, first, groups, False, BITS, G).to(tile.dtype)
        acc = tl.dot(tl.reshape(w, [BLOCK_N, BLOCK_K]), tl.trans(tile), acc, input_precision=PRECISION)
        if GATED:
            codes_up = _codes(codes_of_row + N.to(tl.int64) * width, start, width, G, GROUP, EVEN)
            w = _numbers(codes_up, scales, minima, n_inside + N, first, groups, False, BITS, G).to(tile.dtype)
            acc_up = tl.dot(tl.reshape(w, [BLOCK_N, BLOCK_K]), tl.trans(tile), acc_up, input_precision=PRECISION)
        if BITS == 4:
            tile = _input_rows(x + width, m, start, rows, width, stride, BLOCK_K, EVEN)
            half = first + groups // 2
            w = _numbers(codes, scales, minima, n_inside, half, groups, True, BITS, G).to(tile.dtype)
            acc = tl.dot(tl.reshape(w, [BLOCK_N, BLOCK_K]), tl.trans(tile), acc, input_precision=PRECISION)
            if GATED:
                w = _numbers(codes_up, scales, minima, n_inside + N, half, groups, True, BITS, G).to(tile.dtype)
                acc_up = tl.dot(tl.reshape(w, [BLOCK_N, BLOCK_K]), tl.trans(tile), acc_up, input_precision=PRECISION)
    finish_rows(acc, acc_up, acc, bias, out, n, m, 0.0, rows, N, K, False, GATED, GELU, BIAS, ADD)


@triton.jit
def dequantize_kernel(
    weight, scales, minima, out, K, BITS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, BLOCK_N: tl.constexpr
):
    """One program per (block of rows, G groups of codes): the weights themselves. Columns past K are not written."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    width = K // 2 if BITS == 4 else K
    groups = K // GROUP
    start = tl.program_id(1) * G * GROUP
    j = start + tl.arange(0, G)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (j < width)[None, :, :]
    codes = _codes(weight + n * width, start, width, G, GROUP, False)
    place = out + n[:, None, None] * K + j[None, :, :]
    first = start // GROUP
    w = _numbers(codes, scales, minima, n, first, groups, False, BITS, G)
    tl.store(place, w.to(out.dtype.element_ty), mask=inside)
    if BITS == 4:
        w = _numbers(codes, scales, minima, n, first + groups // 2, groups, True, BITS, G)
        tl.store(place + width, w.to(out.dtype.element_ty), mask=inside)
