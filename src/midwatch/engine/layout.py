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
    size = pool.block_size
    tables = [pool.table(chunk.sequence.id) for chunk in chunks]
    starts, lengths, adapters = [0], [], []
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    wants_hidden = False
    for chunk, table in zip(chunks, tables, strict=True):
        sequence, begin, count, drafts = chunk.sequence, chunk.start, chunk.num_tokens, chunk.num_drafts
        row, end = starts[-1], begin + count
        starts.append(row + count)
        lengths.append(end)
        adapters.append(sequence.adapter_slot)
        token_ids += sequence.token_ids[begin:end]
        if drafts:
            token_ids += sequence.draft_ids[:drafts]
        positions += range(begin, end)
        slots += [table[place // size] * size + place % size for place in range(begin, end)]
        wants_hidden |= sequence.pooling is not None
        if sequence.params.prompt_logprobs is not None and sequence.wants_all_rows:
            logit_rows += range(row, row + count)
        elif chunk.reaches_end and sequence.pooling is None:
            logit_rows += range(row + count - 1 - drafts, row + count)

    previous: Int32 | None = None
    if previous_rows:
        previous = np.full(len(token_ids), -1, dtype=np.int32)
        for chunk, end in zip(chunks, starts[1:], strict=True):
            if token_ids[end - 1] == FROM_PREVIOUS:
                previous[end - 1] = previous_rows[chunk.sequence.id]
    return Batch(
        token_ids=np.array(token_ids, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
        slots=np.array(slots, dtype=np.int32),
        starts=np.array(starts, dtype=np.int32),
        lengths=np.array(lengths, dtype=np.int32),
        block_tables=_padded(tables),
        logit_rows=np.array(logit_rows, dtype=np.int32),
        adapters=np.array(adapters, dtype=np.int32),
        previous_rows=previous,
        want_hidden=wants_hidden,
    )


def _padded(tables: Ids[list[int]]) -> Int32:
    padded = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return padded
