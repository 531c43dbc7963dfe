"""Attention over paged keys and values, as Triton kernels: a split one for single tokens, a tiled one for chunks.

Both keep a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867) over tiles of keys (Dao et al.,
arXiv 2205.14135); the query heads of one kv head are the rows of one matrix product (Ainslie et al., arXiv 2305.13245).
A single token has too few rows to fill a GPU, so its keys are split over programs and merged after (flash-decoding,
Dao et al. 2023). `attention.py` launches them and says what the arguments are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pages(tables, start, last, PAGE: tl.constexpr, TILE: tl.constexpr):
    """The page of each token of the tile that begins at `start`, or of them all; tokens past `last` count as it.

    Callers load the pages one tile ahead: an address that waits for another load keeps its own from being prefetched.
    """
    if PAGE % TILE == 0:
        return tl.load(tables + tl.minimum(start, last) // PAGE)
    else:
        return tl.load(tables + tl.minimum(start + tl.arange(0, TILE), last) // PAGE)


@triton.jit(do_not_specialize=["window", "splits", "table_stride"])
def decode_attention_kernel(
    queries,
    keys,
    values,
    out,
    partial,
    maxima,
    sums,
    tables,
    starts,
    lengths,
    sequences,
    scale_log2,
    window,
    splits,
    table_stride,
    query_stride,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per (kv head, split, sequence): its share of the keys, for the G query heads of that kv head.

    With WHOLE there is one split, and what it computes is the output.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    index = tl.program_id(2)
    sequence = tl.load(sequences + index)
    row = tl.load(starts + sequence).to(tl.int64)
    length = tl.load(lengths + sequence)
    tables += sequence.to(tl.int64) * table_stride
    lowest = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    first = lowest // TILE * TILE
    tiles = tl.maximum(tl.cdiv(tl.cdiv(length - first, TILE), splits), MIN_TILES)
    begin = first + split * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, length)

    g = tl.arange(0, GROUP_PADDED)
    d = tl.arange(0, D_PADDED)
    t = tl.arange(0, TILE)
    query_head = head * GROUP + g
    query_mask = (g < GROUP)[:, None] & (d < D)[None, :]
    q = tl.load(queries + row * query_stride + query_head[:, None] * D + d[None, :], mask=query_mask, other=0.0)
    maximum = tl.full([GROUP_PADDED], -float("inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    acc = tl.zeros([GROUP_PADDED, D_PADDED], tl.float32)
    pages = _pages(tables, begin, length - 1, PAGE, TILE)
    for start in range(begin, end, TILE):
        token = tl.minimum(start + t, length - 1)  # places past the end repeat the last token and are masked below
        place = pages.to(tl.int64) * PAGE + token % PAGE
        pages = _pages(tables, start + TILE, length - 1, PAGE, TILE)
        offset = place[:, None] * (NUM_KV_HEADS * D) + (head * D + d)[None, :]
        if D == D_PADDED:
            k = tl.load(keys + offset)
            v = tl.load(values + offset)
        else:
            k = tl.load(keys + offset, mask=(d < D)[None, :], other=0.0)
            v = tl.load(values + offset, mask=(d < D)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        visible = (start + t < end) & (start + t >= lowest)
        scores = tl.where(visible[None, :], scores, -float("inf"))
        highest = tl.maximum(maximum, tl.max(scores, 1))
        factor = tl.exp2(maximum - highest)
        weights = tl.exp2(scores - highest[:, None])
        total = total * factor + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * factor[:, None], input_precision=PRECISION)
        maximum = highest

    if WHOLE:
        acc = acc / total[:, None]
        place = out + row * (NUM_KV_HEADS * GROUP * D) + query_head[:, None] * D + d[None, :]
        tl.store(place, acc.to(out.dtype.element_ty), mask=query_mask)
    else:
        cell = (index.to(tl.int64) * (NUM_KV_HEADS * GROUP) + query_head) * splits + split
        tl.store(maxima + cell, maximum, mask=g < GROUP)  # -inf where this split has no keys
        tl.store(sums + cell, total, mask=g < GROUP)
        if begin < end:
            tl.store(partial + cell[:, None] * D + d[None, :], acc, mask=query_mask)


@triton.jit
def merge_splits_kernel(
    partial,
    maxima,
    sums,
    out,
    starts,
    sequences,
    NUM_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program per (query head, sequence): the splits' outputs, weighed by what each saw of the softmax."""
    head = tl.program_id(0)
    index = tl.program_id(1)
    row = tl.load(starts + tl.load(sequences + index)).to(tl.int64)
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, D_PADDED)
    cell = (index.to(tl.int64) * NUM_HEADS + head) * SPLITS + split
    maximum = tl.load(maxima + cell)
    weight = tl.exp2(maximum - tl.max(maximum, 0))
    total = tl.sum(weight * tl.load(sums + cell), 0)
    seen = (maximum > -float("inf"))[:, None] & (d < D)[None, :]
    parts = tl.load(partial + cell[:, None] * D + d[None, :], mask=seen, other=0.0)
    acc = tl.sum(parts * weight[:, None], 0) / total
    tl.store(out + (row * NUM_HEADS + head) * D + d, acc.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def _prefill_tile(
    q,
    keys,
    values,
    pages,
    start,
    length,
    position,
    maximum,
    total,
    acc,
    scale_log2,
    window,
    column,
    d,
    ROW: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    t = tl.arange(0, TILE)
    if MASKED:
        token = tl.minimum(start + t, length - 1)
    else:
        token = start + t
    place = pages.to(tl.int64) * PAGE + token % PAGE
    offset = place[:, None] * ROW + column[None, :]
    if D == D_PADDED:
        k = tl.load(keys + offset)
    else:
        k = tl.load(keys + offset, mask=(d < D)[None, :], other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
    if MASKED:
        visible = (start + t)[None, :] <= position[:, None]
        visible = visible & ((window == 0) | ((start + t)[None, :] > (position - window)[:, None]))
        scores = tl.where(visible, scores, -float("inf"))
    highest = tl.maximum(maximum, tl.max(scores, 1))
    if MASKED:  # a row whose window begins after this tile has seen nothing yet
        highest_or_0 = tl.where(highest == -float("inf"), 0.0, highest)
    else:
        highest_or_0 = highest
    factor = tl.exp2(maximum - highest_or_0)
    weights = tl.exp2(scores - highest_or_0[:, None])
    total = total * factor + tl.sum(weights, 1)
    if D == D_PADDED:
        v = tl.load(values + offset)
    else:
        v = tl.load(values + offset, mask=(d < D)[None, :], other=0.0)
    acc = tl.dot(weights.to(v.dtype), v, acc * factor[:, None], input_precision=PRECISION)
    return highest, total, acc


@triton.jit(do_not_specialize=["window", "table_stride"])
def prefill_attention_kernel(
    queries,
    keys,
    values,
    out,
    tables,
    starts,
    lengths,
    tile_sequences,
    tile_firsts,
    scale_log2,
    window,
    table_stride,
    query_stride,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per (kv head, tile of rows): ROWS // GROUP tokens of one sequence times its G query heads.

    Tiles of keys that every row sees whole come first and need no mask; those on the diagonal or at a window's edge do.
    """
    head = tl.program_id(0)
    index = tl.program_id(1)
    TOKENS: tl.constexpr = ROWS // GROUP
    ROW: tl.constexpr = NUM_KV_HEADS * D
    sequence = tl.load(tile_sequences + index)
    first = tl.load(tile_firsts + index)
    row = tl.load(starts + sequence)
    count = tl.load(starts + sequence + 1) - row
    length = tl.load(lengths + sequence)
    tables += sequence.to(tl.int64) * table_stride

    m = tl.arange(0, ROWS)
    d = tl.arange(0, D_PADDED)
    token = first + m // GROUP
    inside = (m < TOKENS * GROUP) & (token < count)
    position = length - count + tl.minimum(token, count - 1)
    query_head = head * GROUP + m % GROUP
    source = (row + token).to(tl.int64)[:, None] * query_stride + query_head[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    q = tl.load(queries + source, mask=mask, other=0.0)

    lowest_position = length - count + first
    end = tl.minimum(lowest_position + TOKENS, length)
    whole = (lowest_position + 1) // TILE * TILE
    begin = tl.where(window > 0, tl.maximum(lowest_position + 1 - window, 0) // TILE * TILE, 0)
    whole = tl.where(window > 0, begin, whole)
    maximum = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_PADDED], tl.float32)
    column = head * D + d
    pages = _pages(tables, begin, length - 1, PAGE, TILE)
    for start in range(begin, whole, TILE):
        now = pages
        pages = _pages(tables, start + TILE, length - 1, PAGE, TILE)
        maximum, total, acc = _prefill_tile(
            q, keys, values, now, start, length, position, maximum, total, acc, scale_log2, window, column, d,
            ROW, D, D_PADDED, PAGE, TILE, False, PRECISION,
        )  # fmt: skip
    for start in range(whole, end, TILE):
        now = pages
        pages = _pages(tables, start + TILE, length - 1, PAGE, TILE)
        maximum, total, acc = _prefill_tile(
            q, keys, values, now, start, length, position, maximum, total, acc, scale_log2, window, column, d,
            ROW, D, D_PADDED, PAGE, TILE, True, PRECISION,
        )  # fmt: skip
    acc = acc / total[:, None]
    target = (row + token).to(tl.int64)[:, None] * (NUM_KV_HEADS * GROUP * D) + query_head[:, None] * D + d[None, :]
    tl.store(out + target, acc.to(out.dtype.element_ty), mask=mask)
