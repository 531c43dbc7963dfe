"""What crosses from the engine to a backend and back: one step laid end to end, and its logits.

The engine decides who runs and where keys and values lie (`scheduler.py`, `blocks.py`); a backend multiplies. Three
backends take the same `Batch`: `transformer.py` (PyTorch, the reference), `cpu/` (one C file) and `cuda/` (Triton).
Legend: T tokens of the step, S sequences, B blocks of the longest table, R rows with logits, V vocabulary, K hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from midwatch.engine.checkpoint import ModelConfig

if TYPE_CHECKING:
    from midwatch.engine.lora import Adapter

Int32 = npt.NDArray[np.int32]

FROM_PREVIOUS = -1
"""A token id that is not known yet: the backend takes it from the ids that it sampled in the step before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step: the new tokens of every scheduled sequence, laid end to end. All arrays are int32 and C-contiguous.

    `token_ids` [T] and `positions` [T] (0 is a sequence's first token). `slots` [T]: where each token's key and value
    go, block · block_size + offset. `starts` [S + 1]: rows `starts[s]` to `starts[s + 1]` are sequence s, at least one.
    `lengths` [S]: tokens of sequence s once this step is computed; its last row attends to all of them, the row before
    to one less. `block_tables` [S, B]: block of positions 0, block_size, ...; entries past a sequence's length are 0.
    `logit_rows` [R]: rows that need logits, ascending. `adapters` [S]: the slot of a sequence's LoRA adapter, -1 for
    none. `previous_rows` [T]: where `token_ids` is `FROM_PREVIOUS`, the index into the previous step's sampled ids,
    else -1 (only for backends that overlap; None elsewhere). `want_hidden`: also return the hidden states.
    """

    token_ids: Int32
    positions: Int32
    slots: Int32
    starts: Int32
    lengths: Int32
    block_tables: Int32
    logit_rows: Int32
    adapters: Int32
    previous_rows: Int32 | None = None
    want_hidden: bool = False

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.token_ids.shape[0])

    @property
    def num_sequences(self) -> int:
        """S."""
        return int(self.lengths.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What a step computed. `logits_RV` is float32 and the caller's to overwrite until the next call of `forward`.

    `hidden_TK` is float32 after the final norm, if it was asked for. `greedy_R` are the likeliest ids (the lowest of
    equals), where the backend has them for nothing.
    """

    logits_RV: torch.Tensor
    hidden_TK: torch.Tensor | None = None
    greedy_R: torch.Tensor | None = None


class Backend(Protocol):
    """Weights in the form that one device multiplies best, and the pool of keys and values beside them.

    `name` is what `/metrics` and `midwatch doctor` show. `kv_bytes_per_token` counts one place of the pool over all
    layers. A key or value written in a step is visible to every later row of that same step.
    """

    name: str
    config: ModelConfig
    device: torch.device
    block_size: int
    num_blocks: int
    kv_bytes_per_token: int
    weight_bytes: int
    """Bytes of weights that one decode step reads: the numerator of the roofline."""

    def forward(self, batch: Batch) -> Forward:
        """Compute a step."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination), before the next `forward`: what copy-on-write asks for."""
        ...

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        """Make a LoRA adapter ready under a slot. Raises `ModelError` if it is for another base."""
        ...

    def unload_adapter(self, slot: int) -> None:
        """Forget the adapter of a slot; no running sequence uses it."""
        ...

    def close(self) -> None:
        """Let go of threads and memory. May be called twice."""
        ...


@runtime_checkable
class OverlappingBackend(Backend, Protocol):
    """A backend whose `forward` returns before the device is done, and that can take token ids from its last draws."""

    def remember(self, ids_R: torch.Tensor) -> None:
        """Keep the ids that were drawn from the last step, on the device, for the next step's `previous_rows`."""
        ...
