"""Draw ids from logits by temperature alone, reading them once: what most requests ask for.

The distribution function is inverted at one uniform number a row, in the order of ids, as `engine/drawing.py` does with
a dozen PyTorch operations. One kernel takes each part of the vocabulary to its maximum and its sum of exponentials
(Milakov and Gimelshein, arXiv 1805.02867); a second picks the part in which the number falls, and the id in it.
Legend: R rows, V vocabulary, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from midwatch.engine.cuda.launch import cdiv, launch, power_of_2

PART = 4096
LOWEST_TEMPERATURE = 1e-5


def draw(logits_RV: torch.Tensor, temperatures_R: torch.Tensor, uniforms_R: torch.Tensor) -> torch.Tensor:
    """Ids [R], int64: the likeliest where the temperature is 0; -1 where a row's logits are not numbers.

    `logits_RV` is float32 and left as it is; `temperatures_R` float32, `uniforms_R` float64 in [0, 1).
    """
    rows, vocab_size = logits_RV.shape
    parts = cdiv(vocab_size, PART)
    device = logits_RV.device
    maxima, sums = (torch.empty(rows, parts, dtype=torch.float32, device=device) for _ in range(2))
    places = torch.empty(rows, parts, dtype=torch.int32, device=device)
    ids_R = torch.empty(rows, dtype=torch.int64, device=device)
    stride = logits_RV.stride(0)
    launch(
        _weigh,
        (parts, rows),
        (logits_RV, temperatures_R, maxima, sums, places, vocab_size, stride, LOWEST_TEMPERATURE),
        PART=PART,
    )
    launch(
        _pick,
        (rows,),
        (
            logits_RV,
            temperatures_R,
            uniforms_R,
            maxima,
            sums,
            places,
            ids_R,
            vocab_size,
            stride,
            parts,
            LOWEST_TEMPERATURE,
        ),
        PARTS=power_of_2(parts),
        PART=PART,
        num_warps=8,
    )
    return ids_R


@triton.jit
def _inverse(temperatures, row, lowest):
    """1 / temperature; 1 for a greedy row, whose sum is wanted only to see whether it is a number."""
    temperature = tl.load(temperatures + row)
    return tl.where(temperature > 0, 1.0 / tl.maximum(temperature, lowest), 1.0)


@triton.jit
def _weigh(logits, temperatures, maxima, sums, places, V, stride, lowest, PART: tl.constexpr):
    """One program per (part, row)."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    v = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row * stride + v, mask=v < V, other=-float("inf"))
    maximum, place = tl.max(x, 0, return_indices=True)
    weights = tl.exp((x - maximum) * _inverse(temperatures, row, lowest))
    total = tl.where(maximum == -float("inf"), 0.0, tl.sum(weights, 0))
    cell = row * tl.num_programs(0) + part
    tl.store(maxima + cell, maximum)
    tl.store(sums + cell, total)
    tl.store(places + cell, part * PART + place)


@triton.jit
def _pick(
    logits,
    temperatures,
    uniforms,
    maxima,
    sums,
    places,
    ids,
    V,
    stride,
    parts,
    lowest,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    """One program per row. Sums are float64: a float32 one would lose the tail of a large vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, PARTS)
    inverse = _inverse(temperatures, row, lowest)
    part_maxima = tl.load(maxima + row * parts + p, mask=p < parts, other=-float("inf"))
    maximum, best = tl.max(part_maxima, 0, return_indices=True)
    weights = tl.load(sums + row * parts + p, mask=p < parts, other=0.0) * tl.exp((part_maxima - maximum) * inverse)
    until = tl.cumsum(tl.where(weights > 0, weights, 0.0).to(tl.float64), 0)
    total = tl.sum(weights.to(tl.float64), 0)  # not a number if any logit was none
    uniform = tl.minimum(tl.load(uniforms + row), 1.0 - 9.094947017729282e-13)
    target = uniform * tl.max(until, 0)
    part = tl.minimum(tl.sum((until <= target).to(tl.int32), 0), parts - 1)
    before = tl.sum(tl.where(p == part - 1, until, 0.0), 0)
    weight = tl.sum(tl.where(p == part, weights, 0.0).to(tl.float64), 0)

    v = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row * stride + v, mask=v < V, other=-float("inf"))
    within = tl.cumsum(tl.exp((x - maximum) * inverse).to(tl.float64), 0)
    share = tl.minimum(tl.maximum((target - before) / weight, 0.0), 1.0 - 9.094947017729282e-13)
    place = tl.sum((within <= share * tl.max(within, 0)).to(tl.int32), 0)
    drawn = tl.minimum(part * PART + place, V - 1)
    greedy = tl.load(places + row * parts + best)
    chosen = tl.where(tl.load(temperatures + row) > 0, drawn, greedy)
    is_number = (tl.abs(total) < float("inf")) & (tl.abs(maximum) < float("inf"))
    tl.store(ids + row, tl.where(is_number, chosen, -1).to(tl.int64))
