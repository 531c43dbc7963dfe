"""Steps made by hand, for tests that drive a backend without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from midwatch.engine.batch import Backend, Batch


@dataclass(frozen=True, kw_only=True)
class Part:
    """The new tokens of one sequence: the first stands at `start`; keys and values lie in the blocks of `table`.

    `logits`: which of its rows get logits: "last", "all" or "none".
    """

    token_ids: Sequence[int]
    table: Sequence[int]
    start: int = 0
    logits: str = "last"
    adapter: int = -1


def make_batch(parts: Sequence[Part], block_size: int, *, want_hidden: bool = False) -> Batch:
    """Lay parts end to end."""
    counts = [len(part.token_ids) for part in parts]
    starts = np.concatenate([[0], np.cumsum(counts)])
    positions = [np.arange(part.start, part.start + len(part.token_ids)) for part in parts]
    slots = [
        np.asarray(part.table)[where // block_size] * block_size + where % block_size
        for part, where in zip(parts, positions, strict=True)
    ]
    tables = np.zeros((len(parts), max(len(part.table) for part in parts)), dtype=np.int32)
    rows: list[int] = []
    for index, part in enumerate(parts):
        length = part.start + len(part.token_ids)
        used = -(-length // block_size)
        tables[index, :used] = part.table[:used]
        wanted = {"last": 1, "all": counts[index], "none": 0}[part.logits]
        rows.extend(range(int(starts[index + 1]) - wanted, int(starts[index + 1])))

    def int32(values: object) -> np.ndarray:
        return np.ascontiguousarray(values, dtype=np.int32)

    return Batch(
        token_ids=int32([token for part in parts for token in part.token_ids]),
        positions=int32(np.concatenate(positions)),
        slots=int32(np.concatenate(slots)),
        starts=int32(starts),
        lengths=int32([part.start + len(part.token_ids) for part in parts]),
        block_tables=tables,
        logit_rows=int32(rows),
        adapters=int32([part.adapter for part in parts]),
        want_hidden=want_hidden,
    )


def run(backend: Backend, *parts: Part, want_hidden: bool = False) -> torch.Tensor:
    """Run one step and return its logits [R, V], or the hidden states [T, K]."""
    done = backend.forward(make_batch(parts, backend.block_size, want_hidden=want_hidden))
    if want_hidden:
        assert done.hidden_TK is not None
        return done.hidden_TK.clone()
    return done.logits_RV.clone()


def all_logits(
    backend: Backend, token_ids: Sequence[int], *, chunk: int = 0, first_block: int = 0, adapter: int = -1
) -> torch.Tensor:
    """Logits after every token of a text [T, V], computed in pieces of `chunk` tokens (0 is whole)."""
    num_blocks = -(-len(token_ids) // backend.block_size)
    table = range(first_block, first_block + num_blocks)
    size = chunk or len(token_ids)
    rows = [
        run(backend, Part(token_ids=token_ids[at : at + size], table=table, start=at, logits="all", adapter=adapter))
        for at in range(0, len(token_ids), size)
    ]
    return torch.cat(rows)
