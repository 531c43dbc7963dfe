"""Matrix products of a few rows with weights of eight or four bits, and the unpacking of those for many rows.

A word of 32 bits holds P = 4 or 8 codes: its i-th is that of column i · K / P + j for word j, so that the inputs that
meet one position of the words lie side by side. Weights of a group are w = f · step + base, with f = 1 + code / 2^bits:
the code's bits are put right below the exponent of a float32 1.0, which needs a shift and a logical operation where a
conversion would be the slowest instruction here. `pairs` holds step (low half) and base (high half) as bfloat16,
[N, K / GROUP]. Tiles have a dimension for groups, [N, G, GROUP]. Legend and what stands around the product:
`linear_kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midwatch.engine.cuda.linear_kernels import finish_row, finish_rows

ONE = tl.constexpr(0x3F800000)  # the bits of 1.0


@triton.jit
def _words(row_of_weight, start, width, G: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr):
    """A tile of words, uint32 [N, G, GROUP]; columns past `width` are 0."""
    j = start + tl.arange(0, G)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    place = row_of_weight[:, None, None] + j[None, :, :]
    words = tl.load(place) if EVEN else tl.load(place, mask=(j < width)[None, :, :], other=0)
    return words.to(tl.uint32, bitcast=True)


@triton.jit
def _numbers(
    words,
    pairs,
    n,
    first,
    groups,
    POSITION: tl.constexpr,
    BITS: tl.constexpr,
    G: tl.constexpr,
):
    """Weights at one position of a tile of words, float32 [N, G, GROUP]. `groups` are those of all K columns."""
    per_position = groups * BITS // 32
    g = first + tl.arange(0, G)
    place = pairs + n[:, None] * groups + (POSITION * per_position + g)[None, :]
    pair = tl.load(place, mask=(g < per_position)[None, :], other=0).to(tl.uint32, bitcast=True)
    step = (pair << 16).to(tl.float32, bitcast=True)
    base = (pair & 0xFFFF0000).to(tl.float32, bitcast=True)
    SHIFT: tl.constexpr = 23 - BITS - BITS * POSITION
    MASK: tl.constexpr = ((1 << BITS) - 1) << (23 - BITS)
    if SHIFT >= 0:
        shifted = words << SHIFT
    else:
        shifted = words >> -SHIFT
    f = ((shifted & MASK) | ONE).to(tl.float32, bitcast=True)
    return f * step[:, :, None] + base[:, :, None]


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
    pairs,
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
    """`row_kernel` with G groups of words at a time."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = tl.minimum(n, N - 1).to(tl.int64)
    width = K // (GROUP * 32 // BITS) * GROUP  # said so that the compiler sees that rows are aligned
    groups = K // GROUP
    rows = weight + n_inside * width
    acc = tl.zeros([BLOCK_N, G, GROUP], tl.float32)
    acc_up = tl.zeros([BLOCK_N, G, GROUP], tl.float32)
    square = tl.zeros([G, GROUP], tl.float32)
    for start in tl.range(0, width, G * GROUP, num_stages=STAGES):
        first = start // GROUP
        words = _words(rows, start, width, G, GROUP, EVEN)
        if GATED:
            words_up = _words(rows + N.to(tl.int64) * width, start, width, G, GROUP, EVEN)
        for position in tl.static_range(32 // BITS):
            offset = position * width
            tile, squares = _input_row(x + offset, norm + offset, start, width, G, GROUP, NORMED, EVEN)
            if NORMED:
                square += squares
            acc += tile[None, :, :] * _numbers(words, pairs, n_inside, first, groups, position, BITS, G)
            if GATED:
                w = _numbers(words_up, pairs, n_inside + N, first, groups, position, BITS, G)
                acc_up += tile[None, :, :] * w
    y = tl.sum(tl.sum(acc, 2), 1)
    y_up = tl.sum(tl.sum(acc_up, 2), 1)
    total = tl.sum(tl.sum(square, 1), 0)
    finish_row(y, y_up, total, bias, out, n, eps, N, K, NORMED, GATED, GELU, BIAS, ADD)


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
    pairs,
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
    """`rows_kernel` with G groups of words at a time; the input is normalised before."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = tl.minimum(n, N - 1).to(tl.int64)
    BLOCK_K: tl.constexpr = G * GROUP
    width = K // (GROUP * 32 // BITS) * GROUP  # said so that the compiler sees that rows are aligned
    groups = K // GROUP
    words_of_row = weight + n_inside * width
    m = tl.arange(0, ROWS)
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
    acc_up = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for start in range(0, width, BLOCK_K):
        first = start // GROUP
        words = _words(words_of_row, start, width, G, GROUP, EVEN)
        if GATED:
            words_up = _words(words_of_row + N.to(tl.int64) * width, start, width, G, GROUP, EVEN)
        for position in tl.static_range(32 // BITS):
            tile = _input_rows(x + position * width, m, start, rows, width, stride, BLOCK_K, EVEN)
            w = _numbers(words, pairs, n_inside, first, groups, position, BITS, G).to(tile.dtype)
            acc = tl.dot(tl.reshape(w, [BLOCK_N, BLOCK_K]), tl.trans(tile), acc, input_precision=PRECISION)
            if GATED:
                w = _numbers(words_up, pairs, n_inside + N, first, groups, position, BITS, G).to(tile.dtype)
                acc_up = tl.dot(tl.reshape(w, [BLOCK_N, BLOCK_K]), tl.trans(tile), acc_up, input_precision=PRECISION)
    finish_rows(acc, acc_up, acc, bias, out, n, m, 0.0, rows, N, K, False, GATED, GELU, BIAS, ADD)


@triton.jit
def dequantize_kernel(
    weight, pairs, out, K, BITS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, BLOCK_N: tl.constexpr
):
    """One program per (block of rows, G groups of words): the weights themselves."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    width = K // (GROUP * 32 // BITS) * GROUP  # said so that the compiler sees that rows are aligned
    start = tl.program_id(1) * G * GROUP
    j = start + tl.arange(0, G)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (j < width)[None, :, :]
    words = _words(weight + n * width, start, width, G, GROUP, False)
    place = out + n[:, None, None] * K + j[None, :, :]
    for position in tl.static_range(32 // BITS):
        w = _numbers(words, pairs, n, start // GROUP, K // GROUP, position, BITS, G)
        tl.store(place + position * width, w.to(out.dtype.element_ty), mask=inside)
