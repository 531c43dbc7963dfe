"""LoRA adapters: for some linears of some layers, y += (x Aᵀ) Bᵀ · scale.

Source: Hu et al. (arXiv 2106.09685), section 4.1. Files are read in peft's layout (`adapter_config.json` beside
`adapter_model.safetensors`).
Legend: T rows of the step, K input columns, N output rows, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from midwatch.engine.batch import Batch
from midwatch.engine.checkpoint import ModelConfig, tensor_shape
from midwatch.errors import ModelError

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """`a` [rank, in] and `b` [out, rank], float32, `scale` already multiplied into `b`."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`pairs` by (layer, linear), linear one of `LINEARS`. Rows of q and k are in half-split order, as peft's are."""

    name: str
    rank: int
    pairs: dict[tuple[int, str], LoraPair]


@dataclass(frozen=True, slots=True)
class RowsOfSlot:
    """Rows of a step that use the adapter of one slot; `rows` is None where all of them do."""

    slot: int
    rows: torch.Tensor | None


class LoraSlots:
    """The adapters that a backend in PyTorch holds, and their share of a linear's output."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self._slots: dict[int, dict[tuple[int, str], LoraPair]] = {}

    def load(self, slot: int, adapter: Adapter) -> None:
        """Keep an adapter under a slot. Raises `ModelError` if it is for another base."""
        check_adapter(adapter, self._config)
        self._slots[slot] = {
            key: LoraPair(a=pair.a.to(self._dtype), b=pair.b.to(self._dtype)) for key, pair in adapter.pairs.items()
        }

    def unload(self, slot: int) -> None:
        """Forget the adapter of a slot; an empty slot is fine."""
        self._slots.pop(slot, None)

    def rows(self, batch: Batch) -> list[RowsOfSlot]:
        """Which rows of a step use which adapter."""
        used = [int(slot) for slot in np.unique(batch.adapters) if slot >= 0]
        if not used:
            return []
        slot_T = np.repeat(batch.adapters, np.diff(batch.starts))
        if len(used) == 1 and bool(np.all(slot_T == used[0])):
            return [RowsOfSlot(used[0], None)]
        return [RowsOfSlot(slot, torch.from_numpy(np.flatnonzero(slot_T == slot))) for slot in used]

    def add(
        self, y_TN: torch.Tensor, x_TK: torch.Tensor, layer: int, names: Sequence[str], rows: Sequence[RowsOfSlot]
    ) -> None:
        """Add what the adapters say to `y_TN`, whose columns are the outputs of `names` side by side."""
        for item in rows:
            pairs = self._slots[item.slot]
            chosen_TK = x_TK if item.rows is None else x_TK[item.rows]
            start = 0
            for name in names:
                end = start + tensor_shape(self._config, name)[0]
                pair = pairs.get((layer, name))
                if pair is not None:
                    delta_TN = chosen_TK @ pair.a.T @ pair.b.T
                    if item.rows is None:
                        y_TN[:, start:end] += delta_TN
                    else:
                        y_TN[:, start:end].index_add_(0, item.rows, delta_TN)
                start = end


def check_adapter(adapter: Adapter, config: ModelConfig) -> None:
    """Raise `ModelError` if a pair does not fit the base: another number of layers, or other widths."""
    for (layer, linear), pair in adapter.pairs.items():
        if linear not in LINEARS or not 0 <= layer < config.num_layers:
            raise ModelError(f"Adapter {adapter.name} changes {linear} of layer {layer}, which the base has not.")
        rows, columns = tensor_shape(config, linear)
        rank = pair.a.shape[0]
        if pair.a.shape != (rank, columns) or pair.b.shape != (rows, rank):
            raise ModelError(
                f"Adapter {adapter.name} is for another base: its {linear} of layer {layer} is "
                f"{tuple(pair.b.shape)} · {tuple(pair.a.shape)}, the base's is {(rows, columns)}.",
                "Load the adapter beside the model that it was trained on.",
            )
