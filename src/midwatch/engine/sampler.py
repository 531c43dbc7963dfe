"""Draw one id per sequence from its logits, and say how probable it was.

Order: grammar mask → log-probabilities → temperature → top-k → top-p → draw. One uniform number per token comes from
the request's own generator, so a seed gives the same answer whatever else is in the batch. The reported log-
probabilities are those of the model under the grammar, before temperature and filters: a token the grammar leaves no
choice in has 0.0. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from midwatch.engine.request import SamplingParams

NUCLEUS_FIRST_LOOK = 1024


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled id, its log-probability and the likeliest (id, log-probability) pairs, if they were asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row is drawn with:

    the request's parameters, its generator, and what its grammar forbids ([V], bool).
    """

    params: SamplingParams
    random: random.Random
    forbidden: torch.Tensor | None = None


def sample(logits_RV: torch.Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """Draw one id per row of float32 logits. Rows do not influence each other."""
    for row, draw in enumerate(draws):
        if draw.forbidden is not None:
            logits_RV[row].masked_fill_(draw.forbidden, -torch.inf)
    greedy: list[int] = logits_RV.argmax(dim=-1).tolist()
    return [_draw_row(logits_RV[row], greedy[row], draw) for row, draw in enumerate(draws)]


def _draw_row(logits_V: torch.Tensor, greedy_id: int, draw: Draw) -> Drawn:
    params = draw.params
    token_id = greedy_id
    if params.temperature > 0:
        token_id = _draw_random(logits_V, params, draw.random.random())
    if params.logprobs is None:
        return Drawn(token_id)
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    top: list[tuple[int, float]] = []
    if params.logprobs:
        values, ids = logprobs_V.topk(min(params.logprobs, logits_V.shape[0]))
        finite = torch.isfinite(values)
        top = list(zip(ids[finite].tolist(), values[finite].tolist(), strict=True))
    return Drawn(token_id, float(logprobs_V[token_id]), tuple(top))


def _draw_random(logits_V: torch.Tensor, params: SamplingParams, uniform: float) -> int:
    """Invert the distribution function at `uniform` in [0, 1), over the tokens that top-k and top-p keep."""
    scaled_V = (logits_V - logits_V.max()).double() / max(params.temperature, 1e-6)
    if not params.top_k and params.top_p >= 1:
        return _invert(torch.exp(scaled_V), uniform)
    kept = min(params.top_k, scaled_V.shape[0]) if params.top_k else scaled_V.shape[0]
    if params.top_k or params.top_p >= 1:
        weights, ids = torch.exp(scaled_V).topk(kept)
        total = weights.sum()
    else:
        weights, ids, total = _likeliest(torch.exp(scaled_V), params.top_p)
    if params.top_p < 1:
        before = weights.cumsum(0) - weights  # a token stays if those above it do not yet reach top_p
        weights = weights[: max(1, int((before < params.top_p * total).sum()))]
    return int(ids[_invert(weights, uniform)])


def _likeliest(weights_V: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Enough of the largest weights to hold `top_p` of the whole; sorting all of V is the exception."""
    total = weights_V.sum()
    weights, ids = weights_V.topk(min(NUCLEUS_FIRST_LOOK, weights_V.shape[0]))
    if weights.sum() < top_p * total:
        weights, ids = weights_V.sort(descending=True)
    return weights, ids, total


def _invert(weights: torch.Tensor, uniform: float) -> int:
    cumulative = weights.cumsum(0)
    index = int(torch.searchsorted(cumulative, cumulative[-1] * uniform, right=True))
    return min(index, int(torch.nonzero(weights)[-1]))
