"""Lay a plan end to end: from the scheduler's chunks to the arrays that a backend reads."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Ids

import numpy as np

from midwatch.engine.batch import FROM_PREVIOUS, Batch, Int32
from midwatch.engine.blocks import BlockPool
from midwatch.engine.scheduler import Chunk


def lay_out(chunks: Ids[Chunk], pool: BlockPool, previous_rows: Mapping[int, int] | None = None) -> Batch:
    """The batch of these chunks, whose room is granted.

    Logits are wanted for the rows that are sampled: the last known token of a chunk that reaches it and the drafts
    after it; and for every row of a prompt that is scored. `previous_rows` says, by sequence id, which draw of the step
    in flight gives a pending token.
    """
    counts = np.array([chunk.num_tokens for chunk in chunks], dtype=np.int32)
    begins = np.array([chunk.start for chunk in chunks], dtype=np.int32)
    starts = np.zeros(len(chunks) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    sequence_T = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
    positions = np.arange(starts[-1], dtype=np.int32) - starts[:-1][sequence_T] + begins[sequence_T]
    tables = _tables(chunks, pool)
    size = pool.block_size
    slots = tables[sequence_T, positions // size] * size + positions % size

    token_ids: list[int] = []
    logit_rows: list[int] = []
    wants_hidden = False
    for chunk, start in zip(chunks, starts.tolist(), strict=False):
        sequence, end = chunk.sequence, chunk.start + chunk.num_tokens
        token_ids += sequence.token_ids[chunk.start : end]
        if chunk.num_drafts:
            token_ids += sequence.draft_ids[: chunk.num_drafts]
        wants_hidden |= sequence.pooling is not None
        if sequence.params.prompt_logprobs is not None and sequence.wants_all_rows:
            logit_rows += range(start, start + chunk.num_tokens)
        elif chunk.reaches_end and sequence.pooling is None:
            logit_rows += range(start + chunk.num_tokens - 1 - chunk.num_drafts, start + chunk.num_tokens)

    previous: Int32 | None = None
    if previous_rows:
        previous = np.full(len(token_ids), -1, dtype=np.int32)
        for chunk, end in zip(chunks, starts[1:].tolist(), strict=True):
            if token_ids[end - 1] == FROM_PREVIOUS:
                previous[end - 1] = previous_rows[chunk.sequence.id]
    return Batch(
        token_ids=np.array(token_ids, dtype=np.int32),
        positions=positions,
        slots=slots,
        starts=starts,
        lengths=begins + counts,
        block_tables=tables,
        logit_rows=np.array(logit_rows, dtype=np.int32),
        adapters=np.array([chunk.sequence.adapter_slot for chunk in chunks], dtype=np.int32),
        previous_rows=previous,
        want_hidden=wants_hidden,
    )


def _tables(chunks: Ids[Chunk], pool: BlockPool) -> Int32:
    rows = [pool.table(chunk.sequence.id) for chunk in chunks]
    tables = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
    for row, table in zip(tables, rows, strict=True):
        row[: len(table)] = table
    return tables
