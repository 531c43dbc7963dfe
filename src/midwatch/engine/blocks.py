"""Where keys and values live: one growing, contiguous buffer per sequence, behind an interface that pages can enter.

Callers reserve places, and get views to write new keys and values to and to read all of them from. In this cut the
buffer doubles when it is full, so up to half of it can be empty; `slots` says how much. When pages come, `reserve`
takes blocks from a pool (and may refuse, which makes the scheduler preempt) and `views` gives a block table for the
kernel; the scheduler and the transformer keep calling these same methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from midwatch.engine.weights import ModelConfig

FIRST_SLOTS = 256


@dataclass(frozen=True, slots=True)
class KVViews:
    """One sequence's buffers in one step, per layer, for T new tokens of L in all (N kv heads of size D).

    `new` is where to write, keys before values, [T, 2N, D]; `keys` and `values` are what to read, [1, N, L, D].
    """

    new: tuple[torch.Tensor, ...]
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


class KVStore:
    """The keys and values of all live sequences, by sequence id."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, max_slots: int) -> None:
        self._config = config
        self._dtype = dtype
        self._max_slots = max_slots
        self._buffers: dict[int, torch.Tensor] = {}
        self._used: dict[int, int] = {}
        itemsize = torch.empty((), dtype=dtype).element_size()
        self.bytes_per_token = config.num_layers * 2 * config.num_kv_heads * config.head_dim * itemsize

    def reserve(self, sequence_id: int, num_tokens: int) -> None:
        """Make room for a sequence of `num_tokens` in all; what is already there is kept."""
        assert num_tokens <= self._max_slots, "the engine admits no sequence longer than its context"
        buffer = self._buffers.get(sequence_id)
        used = self._used.get(sequence_id, 0)
        if buffer is None or buffer.shape[2] < num_tokens:
            slots = min(max(FIRST_SLOTS, 2 * used, num_tokens + num_tokens // 4), self._max_slots)
            config = self._config
            grown = torch.empty(config.num_layers, 2 * config.num_kv_heads, slots, config.head_dim, dtype=self._dtype)
            if buffer is not None:
                grown[:, :, :used] = buffer[:, :, :used]
            self._buffers[sequence_id] = grown
        self._used[sequence_id] = num_tokens

    def views(self, sequence_id: int, start: int, end: int) -> KVViews:
        """Views of places `start` to `end` (new) and 0 to `end` (all); they hold until the next `reserve`."""
        buffer = self._buffers[sequence_id][:, :, :end]
        keys, values = buffer[:, None].chunk(2, dim=2)
        new = buffer[:, :, start:].transpose(1, 2)
        return KVViews(new=new.unbind(0), keys=keys.unbind(0), values=values.unbind(0))

    def free(self, sequence_id: int) -> None:
        """Give back all places of a sequence; one that has none is fine."""
        self._buffers.pop(sequence_id, None)
        self._used.pop(sequence_id, None)

    def slots(self) -> tuple[int, int]:
        """(used, allocated) places over all sequences. Safe to call from another thread."""
        return sum(list(self._used.values())), sum(buffer.shape[2] for buffer in list(self._buffers.values()))
