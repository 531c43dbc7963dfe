"""Change logits before a draw: the grammar's mask, the bar of `min_tokens`, `logit_bias`, and the penalties.

Repetition divides a positive logit and multiplies a negative one (Keskar et al., arXiv 1909.05858, section 4.1), for
every id of prompt and answer; presence and frequency subtract, for ids of the answer (OpenAI's formula). What is sparse
is built on the host and crosses to the device in one pinned copy that nobody waits for.
Legend: R rows, V vocabulary, A adjusted places, W mask words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from midwatch.engine.sampler import Draw

WORD = 32
FEW = 512


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy a host array to a device without waiting; on a CPU the array itself."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def apply_masks(logits_RV: torch.Tensor, masks: Sequence[npt.NDArray[np.int32] | None]) -> None:
    """Bar, in place, every id whose bit is not set. Ids past the end of a mask are barred too."""
    vocab_size = logits_RV.shape[1]
    for_rows = [row for row, mask in enumerate(masks) if mask is not None]
    if not for_rows:
        return
    if logits_RV.device.type == "cpu":
        for row in for_rows:
            mask = masks[row]
            assert mask is not None
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little", count=min(vocab_size, mask.size * WORD))
            logits_V = logits_RV[row].numpy()
            np.copyto(logits_V[: bits.size], -np.inf, where=bits == 0)
            logits_V[bits.size :] = -np.inf
        return
    words = -(-vocab_size // WORD)
    packed = np.zeros((len(masks), words), np.int32)
    packed[[row for row, mask in enumerate(masks) if mask is None]] = -1
    for row in for_rows:
        mask = masks[row]
        assert mask is not None
        packed[row, : mask.size] = mask[:words]
    words_RW = to_device(packed, logits_RV.device)
    bits_W = torch.arange(WORD, dtype=torch.int32, device=logits_RV.device)
    barred = ((words_RW[:, :, None] >> bits_W) & 1 == 0).view(len(masks), -1)[:, :vocab_size]
    logits_RV.masked_fill_(barred, -torch.inf)


def few_allowed(mask: npt.NDArray[np.int32], vocab_size: int) -> torch.Tensor | None:
    """The ids that a mask allows, ascending, if they are one to `FEW`; None otherwise."""
    words = mask.view(np.uint32)
    if not 0 < int(np.bitwise_count(words).sum()) <= FEW:
        return None
    places = np.flatnonzero(words)
    bits = np.unpackbits(words[places].view(np.uint8).reshape(-1, WORD // 8), axis=1, bitorder="little")
    rows, columns = np.nonzero(bits)
    ids = places[rows] * WORD + columns
    ids = ids[ids < vocab_size]
    return torch.from_numpy(ids) if ids.size else None


def is_allowed(mask: npt.NDArray[np.int32] | None, token_id: int) -> bool:
    """Whether a mask, if there is one, lets an id through; `NOTHING` it never does."""
    if mask is None:
        return token_id >= 0
    return 0 <= token_id < mask.size * WORD and bool(int(mask[token_id // WORD]) >> (token_id % WORD) & 1)


def adjust(logits_RV: torch.Tensor, draws: Sequence[Draw]) -> None:
    """Apply `min_tokens`, `logit_bias` and the penalties in place. Ids outside the vocabulary are passed over."""
    if any(draw.params.logit_bias or draw.params.min_tokens for draw in draws):
        added = [_additions(draw) for draw in draws]
        ids = np.array([id_ for of_row in added for id_ in of_row], np.int64)
        rows = np.repeat(np.arange(len(draws)), [len(of_row) for of_row in added])
        values = np.array([value for of_row in added for value in of_row.values()], np.float64)
        _change(logits_RV, rows, ids, np.ones_like(values), values)
    penalised = [row for row, draw in enumerate(draws) if _has_penalty(draw)]
    if penalised:
        parts = [_penalties(draws[row]) for row in penalised]
        rows = np.repeat(np.array(penalised), [part[0].size for part in parts])
        ids, factors, values = (np.concatenate([part[column] for part in parts]) for column in range(3))
        _change(logits_RV, rows, ids.astype(np.int64), factors, values)


def _additions(draw: Draw) -> dict[int, float]:
    params = draw.params
    if params.min_tokens <= len(draw.answer_ids):
        return dict(params.logit_bias) if params.logit_bias else {}
    return dict(params.logit_bias) | dict.fromkeys((*draw.end_ids, *params.stop_token_ids), -np.inf)


def _has_penalty(draw: Draw) -> bool:
    params = draw.params
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _penalties(draw: Draw) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Ids, each once; what a positive logit is divided by; what is added then."""
    params = draw.params
    answer = np.asarray(draw.answer_ids, np.int64)
    prompt = np.asarray(draw.prompt_ids if params.repetition_penalty != 1 else (), np.int64)
    ids, places = np.unique(np.concatenate([prompt, answer]), return_inverse=True)
    counts = np.bincount(places[prompt.size :], minlength=ids.size)
    lowered = -params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    return ids, np.full(ids.size, params.repetition_penalty), lowered


def _change(
    logits_RV: torch.Tensor,
    rows_A: npt.NDArray[np.int64],
    ids_A: npt.NDArray[np.int64],
    factors_A: npt.NDArray[np.float64],
    values_A: npt.NDArray[np.float64],
) -> None:
    """At (row, id), each pair once: x → x / factor where positive, x · factor elsewhere, then + value."""
    good = (ids_A >= 0) & (ids_A < logits_RV.shape[1])
    columns = [column[good].astype(np.float64) for column in (rows_A, ids_A, factors_A, values_A)]
    table = to_device(np.stack(columns), logits_RV.device)  # float64 holds every id exactly
    rows, ids = table[0].long(), table[1].long()
    now = logits_RV[rows, ids].double()
    logits_RV[rows, ids] = (torch.where(now > 0, now / table[2], now * table[2]) + table[3]).float()
