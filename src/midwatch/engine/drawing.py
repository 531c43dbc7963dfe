"""Draw an id from logits: temperature, top-k, min-p, top-p, and the inverse of the distribution function.

Every filter is a floor under the weights, so no order of the vocabulary is needed to draw: what lies at or above the
floor stays, ties included, and a uniform number picks among those by their weights, in the order of ids. On a CPU the
floor is found among few candidates that provably hold it; on a GPU by a top-k or a sort of the rows that filter.
Legend: R rows, V vocabulary, B blocks of the vocabulary, C candidates, K the largest weights of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from midwatch.engine.adjustments import to_device

if TYPE_CHECKING:
    from midwatch.engine.request import SamplingParams
    from midwatch.engine.sampler import Draw

NOTHING = -1
"""Instead of an id: the row has no token to draw."""
LOWEST_TEMPERATURE = 1e-5
STEEP = 8.0
BLOCK = 256
LONGEST_TOP = 1024
"""Rows whose top-k is longer are sorted instead."""
BELOW_ONE = 1 - 2.0**-40
Weights = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


def draw_one(logits_V: torch.Tensor, draw: Draw) -> int:
    """Draw from one row on a CPU; `NOTHING` where no logit is a finite number that is greatest."""
    params = draw.params
    if params.temperature == 0:
        return _first_of_greatest(logits_V)
    inverse = 1 / max(params.temperature, LOWEST_TEMPERATURE)
    if inverse > STEEP:  # a product that large would round the differences that matter
        logits_V = logits_V - logits_V.amax()
    weights_V = torch.softmax(logits_V if inverse == 1 else logits_V * inverse, -1)
    if math.isnan(weights_V[0].item()):  # one logit that is no number, or a greatest that is infinite, spoils all
        return NOTHING
    if _filters(params, weights_V.shape[0]):
        ids, weights_C = _kept(weights_V, params)
        return int(ids[_invert(weights_C, draw.uniform)])
    return _draw_from_all(weights_V, draw.uniform)


def _filters(params: SamplingParams, vocab_size: int) -> bool:
    return params.top_p < 1 or params.min_p > 0 or 0 < params.top_k < vocab_size


def _blocks(values_V: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole blocks, [B, size], and the rest."""
    whole = values_V.shape[0] // size * size
    return values_V[:whole].view(-1, size), values_V[whole:]


def _first_of_greatest(logits_V: torch.Tensor) -> int:
    """The lowest id of the greatest logit; several times as fast as one argmax over the whole vocabulary."""
    blocks, rest = _blocks(logits_V, BLOCK)
    maxima = torch.cat([blocks.amax(-1), rest.amax(-1, keepdim=True)]) if rest.shape[0] else blocks.amax(-1)
    block = int(maxima.argmax())  # a block that holds a NaN is the greatest of all
    if not math.isfinite(maxima[block].item()):
        return NOTHING
    return block * BLOCK + int(logits_V[block * BLOCK : (block + 1) * BLOCK].argmax())


def _draw_from_all(weights_V: torch.Tensor, uniform: float) -> int:
    """Pick a block by its sum, then an id in it."""
    blocks, rest = _blocks(weights_V, BLOCK)
    until = np.cumsum(blocks.sum(-1).numpy(), dtype=np.float64)
    if rest.shape[0]:
        until = np.append(until, (until[-1] if until.size else 0.0) + float(rest.sum()))
    target = min(uniform, BELOW_ONE) * until[-1]
    block = int(until.searchsorted(target, side="right"))
    start = until[block - 1] if block else 0.0
    weights = weights_V[block * BLOCK : (block + 1) * BLOCK].numpy()
    return block * BLOCK + _invert(weights, max(0.0, (target - start) / (until[block] - start)))


def _invert(weights: Weights | Floats, uniform: float) -> int:
    """The first place whose cumulative weight exceeds the share `uniform`; its own weight is never 0."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    return int(cumulative.searchsorted(min(uniform, BELOW_ONE) * cumulative[-1], side="right"))


def _kept(weights_V: torch.Tensor, params: SamplingParams) -> tuple[npt.NDArray[np.int64], Floats]:
    """The ids that the filters leave, ascending, and their weights."""
    weights = weights_V.numpy()
    size = weights.size
    floor = params.min_p * float(weights_V.amax())
    top_k = params.top_k if 0 < params.top_k < size else 0
    if top_k:
        floor = max(floor, _below_kth(weights_V, top_k))
    elif params.min_p == 0:
        # Weights sum to 1, so all below (1 - p) / V hold less than 1 - p together: none of them is in the nucleus.
        floor = (1 - params.top_p) / size * 0.999
    ids = np.flatnonzero(weights >= np.float32(floor))
    kept = weights[ids].astype(np.float64)
    if top_k and kept.size > top_k:
        ids, kept = _at_least(ids, kept, float(np.partition(kept, kept.size - top_k)[kept.size - top_k]))
    if params.top_p < 1:
        total = float(kept.sum()) if top_k or params.min_p else 1.0
        ids, kept = _at_least(ids, kept, _nucleus_floor(kept, params.top_p, total))
    return ids, kept


def _below_kth(weights_V: torch.Tensor, top_k: int) -> float:
    """A floor at or below the k-th largest weight: k blocks whose maxima reach it hold k such weights."""
    size = max(1, min(64, weights_V.shape[0] // (4 * top_k)))
    maxima = _blocks(weights_V, size)[0].amax(-1).numpy()
    return float(np.partition(maxima, maxima.size - top_k)[maxima.size - top_k])


def _nucleus_floor(weights_C: Floats, top_p: float, total: float) -> float:
    """The lowest weight that those above it, with less than `top_p` of `total`, leave in (Holtzman, arXiv 1904.09751).

    Before sorting, what certainly lies outside is dropped, round by round: C weights below b hold less than C · b.
    """
    while weights_C.size > BLOCK:
        outside = total - float(weights_C.sum())
        rest = weights_C[weights_C >= ((1 - top_p) * total - outside) / weights_C.size * 0.999]
        if rest.size > 0.8 * weights_C.size:
            break
        weights_C = rest
    descending = np.sort(weights_C)[::-1]
    above = np.cumsum(descending) - descending
    return float(descending[max(1, int(np.searchsorted(above, top_p * total))) - 1])


def _at_least(ids: npt.NDArray[np.int64], weights: Floats, floor: float) -> tuple[npt.NDArray[np.int64], Floats]:
    keep = weights >= floor
    return ids[keep], weights[keep]


def draw_rows(logits_RV: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Draw from rows together, on their device, without waiting for it; ids [R] int64, `NOTHING` as in `draw_one`.

    Every call is a kernel's launch, which costs more than the kernel; hence so few of them.
    """
    if logits_RV.is_cuda and not any(_filters(draw.params, logits_RV.shape[1]) for draw in draws):
        from midwatch.engine.cuda import drawing

        pairs = np.array([(draw.params.temperature, draw.uniform) for draw in draws]).T.copy()
        numbers = to_device(pairs, logits_RV.device)
        return drawing.draw(logits_RV, numbers[0].float(), numbers[1])
    greatest_R, greedy_R = logits_RV.max(-1)
    random = [draw.params.temperature > 0 for draw in draws]
    ids_R = greedy_R
    if any(random):
        inverses = [1 / max(draw.params.temperature or 1.0, LOWEST_TEMPERATURE) for draw in draws]
        uniforms = [min(draw.uniform, BELOW_ONE) for draw in draws]
        rest = [(draw.params.min_p, draw.params.top_p, draw.params.temperature) for draw in draws]
        table = np.array([inverses, uniforms, *zip(*rest, strict=True)])
        numbers = to_device(table, logits_RV.device)
        scaled_RV = (logits_RV - greatest_R[:, None]).mul_(numbers[0].float()[:, None])
        weights_RV = torch.softmax(scaled_RV, -1)
        vocab_size = logits_RV.shape[1]
        filtering = [row for row, draw in enumerate(draws) if random[row] and _filters(draw.params, vocab_size)]
        if filtering:
            _filter_rows(weights_RV, filtering, draws, numbers[2:4])
        ids_R = _invert_rows(weights_RV, numbers[1, :, None])
        if not all(random):
            ids_R = torch.where(numbers[4] > 0, ids_R, greedy_R)
    return torch.where(torch.isfinite(greatest_R), ids_R, NOTHING)


def _filter_rows(
    weights_RV: torch.Tensor, filtering: Sequence[int], draws: Sequence[Draw], numbers: torch.Tensor
) -> None:
    """Set to 0, in place, what the filters leave out of the rows `filtering`.

    Without top-k, top-p needs the row sorted. Of ties at the k-th place all stay, as on a CPU, but only k of them count
    towards the mass that top-p takes its share of.
    """
    device, vocab_size = weights_RV.device, weights_RV.shape[1]
    is_all = len(filtering) == len(draws)
    rows = to_device(np.array(filtering, np.int64), device)
    kept_RV = weights_RV if is_all else weights_RV[rows]
    shares = numbers if is_all else numbers[:, rows]
    floors_R1 = shares[0, :, None].float() * kept_RV.amax(-1, keepdim=True)
    sizes = [min(draws[row].params.top_k or vocab_size, vocab_size) for row in filtering]
    if any(size < vocab_size or draws[row].params.top_p < 1 for size, row in zip(sizes, filtering, strict=True)):
        largest = max(sizes)
        ordered_RK = kept_RV.topk(largest)[0] if largest <= LONGEST_TOP else kept_RV.sort(-1, descending=True)[0]
        sizes_R1 = to_device(np.array(sizes, np.int64)[:, None], device)
        ranks_K = torch.arange(ordered_RK.shape[1], device=device)
        keep_RK = (ranks_K < sizes_R1) & (ordered_RK >= floors_R1)
        mass_RK = torch.where(keep_RK, ordered_RK, 0.0).double()
        until_RK = mass_RK.cumsum(-1)
        # A share of 1 keeps all; as 2 it lies above every sum, whatever its rounding.
        shares_R1 = torch.where(shares[1] < 1, shares[1], 2.0)[:, None]
        keep_RK &= until_RK - mass_RK < shares_R1 * until_RK[:, -1:]
        floors_R1 = ordered_RK.gather(1, keep_RK.sum(-1, keepdim=True).clamp(min=1) - 1)
    if is_all:
        weights_RV.masked_fill_(kept_RV < floors_R1, 0.0)
    else:
        weights_RV[rows] = kept_RV.masked_fill_(kept_RV < floors_R1, 0.0)


def _invert_rows(weights_RV: torch.Tensor, uniform_R1: torch.Tensor) -> torch.Tensor:
    """Pick a block by its sum, then an id in it, for every row."""
    rows, vocab_size = weights_RV.shape
    if vocab_size % BLOCK:
        weights_RV = torch.nn.functional.pad(weights_RV, (0, -vocab_size % BLOCK))
    blocks = weights_RV.view(rows, -1, BLOCK)
    sums_RB = blocks.sum(-1, dtype=torch.float64)
    until_RB = sums_RB.cumsum(-1)
    target_R1 = uniform_R1 * until_RB[:, -1:]
    block_R1 = torch.searchsorted(until_RB, target_R1, right=True).clamp(max=until_RB.shape[1] - 1)
    inside_R1 = target_R1 - (until_RB - sums_RB).gather(1, block_R1)
    until_RV = blocks.gather(1, block_R1[:, :, None].expand(-1, 1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    inside_R1 = torch.minimum(inside_R1, until_RV[:, -1:] * BELOW_ONE)  # roundings of the sums stay in the block
    place_R1 = torch.searchsorted(until_RV, inside_R1, right=True)
    return torch.add(place_R1, block_R1, alpha=BLOCK)[:, 0].clamp(max=vocab_size - 1)
