"""Draw one id per row of logits, and say how probable it was.

Order: grammar mask → [log-probabilities] → end-of-turn bar of `min_tokens` → `logit_bias` → repetition, presence and
frequency penalties → temperature → top-k → min-p → top-p → draw. One uniform number per row, from the request's own
generator, decides: a seed gives the same answer whatever else is in the batch. Reported log-probabilities are the
model's own under the grammar, as vLLM and OpenAI report them: bias, penalties, temperature and filters are not in them,
so an enum's margin is what it seems, and a token that the grammar leaves no choice in has 0.0.

Rows never influence each other. On a CPU each row is computed alone, with calls of the same sizes, so it gives the same
id bit for bit beside others; on a GPU all rows go together and the host waits for nothing before `Sampled.drawn`. A row
without a token to draw (all barred, or logits that are not numbers) is told apart as `NOTHING`.
`adjustments.py` changes logits, `drawing.py` draws from them. Legend: R rows, V vocabulary, N log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from midwatch.engine.adjustments import adjust, apply_masks, few_allowed, is_allowed, to_device
from midwatch.engine.drawing import NOTHING, draw_one, draw_rows
from midwatch.engine.request import SamplingParams

__all__ = ["NOTHING", "Draw", "Drawn", "Sampled", "sample", "score"]

DEVICE_ROWS = 128
"""Rows of a GPU that are drawn together: bounds scratch memory at a few hundred MB with the largest vocabularies."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled id, its log-probability and the likeliest (id, log-probability) pairs, if they were asked for.

    `token_id` is `NOTHING` (-1) where the row had no token to draw; the engine ends that answer with `error`.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What one row is drawn with.

    `uniform` is one number in [0, 1) of the request's own generator, not used where the row is greedy. `prompt_ids` and
    `answer_ids` are the tokens so far, for penalties and `min_tokens` (int arrays are taken without a copy). `end_ids`
    are the end-of-turn ids that are barred, with the stop ids, while the answer is shorter than `min_tokens`.
    `allowed` is the grammar's bit mask, ceil(V / 32) words of 32, lowest bit first; a set bit is allowed.
    """

    params: SamplingParams
    uniform: float = 0.0
    prompt_ids: Sequence[int] | npt.NDArray[np.integer] = ()
    answer_ids: Sequence[int] | npt.NDArray[np.integer] = ()
    end_ids: frozenset[int] = frozenset()
    allowed: npt.NDArray[np.int32] | None = None

    @property
    def is_plain(self) -> bool:
        """True if the likeliest id of the untouched logits is all that is asked for."""
        return self.allowed is None and self.is_greedy

    @property
    def is_greedy(self) -> bool:
        """True if the likeliest id of the untouched logits is the answer wherever the grammar allows it."""
        params = self.params
        return (
            params.temperature == 0
            and params.logprobs is None
            and params.presence_penalty == 0
            and params.frequency_penalty == 0
            and params.repetition_penalty == 1
            and not params.logit_bias
            and params.min_tokens <= len(self.answer_ids)
        )


@dataclass(frozen=True, slots=True)
class _Logprobs:
    """Of some rows: the log-probability of the drawn id, [R], and the likeliest N, [R, N] twice."""

    rows: Sequence[int]
    of_drawn: torch.Tensor
    top_values: torch.Tensor
    top_ids: torch.Tensor


class Sampled:
    """What was drawn. `ids_R`, int64 on the logits' device, may feed the next step before the host has seen it.

    A row without a token to draw holds 0 there (a safe index); `drawn` tells it apart.
    """

    def __init__(self, ids_R: torch.Tensor, draws: Sequence[Draw], logprobs: Sequence[_Logprobs] = ()) -> None:
        self._draws = draws
        self.ids_R = ids_R.clamp(min=0) if ids_R.is_cuda or bool((ids_R < 0).any()) else ids_R
        self._event: torch.cuda.Event | None = None
        if ids_R.is_cuda:  # the copies start now, before the next step is queued behind them
            ids_R = ids_R.to("cpu", non_blocking=True)
            logprobs = [_to_host(item) for item in logprobs]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        self._ids_R = ids_R
        self._logprobs = logprobs

    def drawn(self) -> list[Drawn]:
        """The rows' ids and log-probabilities, in order; waits for the device."""
        if self._event is not None:
            self._event.synchronize()
        ids: list[int] = self._ids_R.tolist()
        if not self._logprobs:
            return [Drawn(token_id) for token_id in ids]
        found: dict[int, tuple[float, list[float], list[int]]] = {}
        for item in self._logprobs:
            columns = zip(item.of_drawn.tolist(), item.top_values.tolist(), item.top_ids.tolist(), strict=True)
            found.update(zip(item.rows, columns, strict=True))
        return [self._drawn(row, token_id, found.get(row)) for row, token_id in enumerate(ids)]

    def _drawn(self, row: int, token_id: int, logprobs: tuple[float, list[float], list[int]] | None) -> Drawn:
        if logprobs is None or token_id == NOTHING:
            return Drawn(token_id)
        of_drawn, values, ids = logprobs
        wanted = self._draws[row].params.logprobs or 0
        top = [(id_, value) for id_, value in zip(ids, values, strict=True) if value > -np.inf]
        return Drawn(token_id, of_drawn, tuple(top[:wanted]))


@torch.inference_mode()
def sample(logits_RV: torch.Tensor, draws: Sequence[Draw], greedy_R: torch.Tensor | None = None) -> Sampled:
    """Draw one id per row of float32 logits, which are overwritten. One `Draw` per row, in order.

    `greedy_R` are the likeliest ids where the backend has them; rows that ask for nothing else are then free.
    """
    if greedy_R is not None and all(draw.is_plain for draw in draws):
        return Sampled(greedy_R.to(torch.int64), draws)
    if logits_RV.device.type == "cpu":
        return _sample_on_cpu(logits_RV, draws, greedy_R)
    parts, logprobs = [], []
    for start in range(0, len(draws), DEVICE_ROWS):
        rows, of_rows = logits_RV[start : start + DEVICE_ROWS], draws[start : start + DEVICE_ROWS]
        before = _prepare(rows, of_rows)
        parts.append(draw_rows(rows, of_rows))
        if before is not None:
            asked = [row for row, draw in enumerate(of_rows) if draw.params.logprobs is not None]
            logprobs.append(_logprobs(before, parts[-1], asked, start, of_rows))
    return Sampled(torch.cat(parts) if parts else logits_RV.new_empty(0, dtype=torch.int64), draws, logprobs)


def _sample_on_cpu(logits_RV: torch.Tensor, draws: Sequence[Draw], greedy_R: torch.Tensor | None) -> Sampled:
    """One row after the other. A grammar that leaves few tokens, or the likeliest one, spares the pass over all."""
    ids, logprobs = [], []
    likeliest = [NOTHING] * len(draws) if greedy_R is None else greedy_R.tolist()
    for row, (logits_1V, draw) in enumerate(zip(logits_RV[:, None].unbind(), draws, strict=True)):
        if likeliest[row] != NOTHING and draw.is_greedy and is_allowed(draw.allowed, likeliest[row]):
            ids.append(likeliest[row])
            continue
        few = None if draw.allowed is None else few_allowed(draw.allowed, logits_1V.shape[1])
        is_greedy = draw.params.temperature == 0 and draw.params.logprobs is None
        if few is not None:
            before = torch.log_softmax(logits_1V[:, few], -1) if draw.params.logprobs is not None else None
            adjust(logits_1V, [draw])
            place = draw_one(logits_1V[0, few], draw)
            ids.append(NOTHING if place == NOTHING else int(few[place]))
            if before is not None:
                logprobs.append(_logprobs(before, torch.tensor([place]), [0], row, [draw], ids_V=few))
            continue
        if draw.allowed is not None and is_greedy:
            adjust(logits_1V, [draw])
            ids.append(draw_one(logits_1V[0], draw))
            if is_allowed(draw.allowed, ids[-1]):
                continue
            apply_masks(logits_1V, [draw.allowed])
            ids[-1] = draw_one(logits_1V[0], draw)
            continue
        before = _prepare(logits_1V, [draw])
        ids.append(draw_one(logits_1V[0], draw))
        if before is not None:
            logprobs.append(_logprobs(before, torch.tensor(ids[-1:]), [0], row, [draw]))
    return Sampled(torch.tensor(ids, dtype=torch.int64), draws, logprobs)


def _prepare(logits_RV: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor | None:
    """Mask and adjust logits in place; the log-probabilities between the two, of the rows that asked for them."""
    before = None
    if any(draw.allowed is not None for draw in draws):
        apply_masks(logits_RV, [draw.allowed for draw in draws])
    asked = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    if asked:
        before = torch.log_softmax(logits_RV if len(asked) == len(draws) else logits_RV[asked], -1)
    adjust(logits_RV, draws)
    return before


@torch.inference_mode()
def score(logits_RV: torch.Tensor, token_ids: Sequence[int], top: int) -> list[Drawn]:
    """How probable given tokens are, one after each row, with the `top` likeliest: for prompts. Waits for the device.

    Rows go through in groups, so that a long prompt needs no second copy of its logits.
    """
    found: list[Drawn] = []
    for start in range(0, len(token_ids), DEVICE_ROWS):
        logprobs_RV = torch.log_softmax(logits_RV[start : start + DEVICE_ROWS], -1)
        ids_R1 = to_device(np.array(token_ids[start : start + DEVICE_ROWS], np.int64), logits_RV.device)[:, None]
        values, ids = logprobs_RV.topk(min(top, logits_RV.shape[1]))
        columns = logprobs_RV.gather(1, ids_R1)[:, 0].tolist(), values.tolist(), ids.tolist()
        for token_id, logprob, of_row, ids_of_row in zip(ids_R1[:, 0].tolist(), *columns, strict=True):
            found.append(Drawn(token_id, logprob, tuple(zip(ids_of_row, of_row, strict=True))))
    return found


def _logprobs(
    logprobs_RV: torch.Tensor,
    places_R: torch.Tensor,
    asked: list[int],
    start: int,
    draws: Sequence[Draw],
    *,
    ids_V: torch.Tensor | None = None,
) -> _Logprobs:
    """Of the rows `asked` for; `places_R` are what all rows drew. `ids_V` names columns that are not the vocabulary."""
    most = min(max(draws[row].params.logprobs or 0 for row in asked), logprobs_RV.shape[1])
    drawn = places_R.clamp(min=0) if len(asked) == len(draws) else places_R[asked].clamp(min=0)
    values, places = logprobs_RV.topk(most)
    of_drawn = logprobs_RV.gather(1, drawn[:, None])[:, 0]
    top_ids = places if ids_V is None else ids_V[places]
    return _Logprobs([start + row for row in asked], of_drawn, values, top_ids)


def _to_host(item: _Logprobs) -> _Logprobs:
    tensors = (item.of_drawn, item.top_values, item.top_ids)
    return _Logprobs(item.rows, *(tensor.to("cpu", non_blocking=True) for tensor in tensors))
