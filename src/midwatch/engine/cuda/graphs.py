"""Decode steps recorded once per number of sequences and replayed: no launch costs, no Python per layer.

A recorded step has fixed addresses and a fixed number of rows. Rows beyond the batch are padding: one token each, its
key written to a block that no sequence has. Graphs hold embedding to greedy ids; sampling stays outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from midwatch.engine.batch import Batch, Forward
from midwatch.engine.cuda import kernels
from midwatch.engine.cuda.attention import Plan, Scratch, num_splits
from midwatch.engine.cuda.decoder import Decoder, Step
from midwatch.engine.cuda.lora import AdapterRows
from midwatch.engine.cuda.staging import Staging, aligned

ROWS = ("token_ids", "previous_rows", "positions", "slots", "lengths", "adapters")


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph | None  # None where there is no GPU: the step is run again, not replayed
    step: Step


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then multiples of 8 to 64 and of 16 above, the last one holding `max_num_seqs`."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 1025, 16)]
    return (*[size for size in sizes if size < max_num_seqs], next(size for size in sizes if size >= max_num_seqs))


class DecodeGraphs:
    """One graph per size, with and without adapters, over shared buffers for integers, logits and ids."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_num_seqs: int,
        max_model_len: int,
        previous_ids: torch.Tensor,
        multiprocessors: int,
    ) -> None:
        self.decoder = decoder
        self.sizes = graph_sizes(max_num_seqs)
        self.previous_ids = previous_ids
        self.max_model_len = max_model_len
        self.multiprocessors = multiprocessors
        _, _, num_blocks, self.block_size, num_kv_heads, head_dim = decoder.pool.shape
        self.scratch_block = num_blocks - 1
        self.table_width = aligned(-(-max_model_len // self.block_size))
        device = decoder.pool.device
        largest = self.sizes[-1]
        self.splits = {size: num_splits(size, num_kv_heads, max_model_len, multiprocessors) for size in self.sizes}
        cells = max(size * splits for size, splits in self.splits.items()) * decoder.config.num_heads
        self.scratch = Scratch.make(cells, head_dim, device)
        self.starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self.none = torch.empty(0, dtype=torch.int32, device=device)
        self.staging = Staging(len(ROWS) * aligned(largest) + largest * self.table_width, device)
        self.logits = torch.empty(largest, decoder.config.vocab_size, dtype=torch.float32, device=device)
        self.greedy = torch.empty(largest, dtype=torch.int64, device=device)
        self.recorded: dict[tuple[int, bool], _Recorded] = {}
        self.memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def fits(self, batch: Batch) -> bool:
        """True for a pure decode step: one row a sequence, logits for every row, nothing else asked for."""
        count = batch.num_sequences
        return (
            batch.num_tokens == count <= self.sizes[-1] and batch.logit_rows.shape[0] == count and not batch.want_hidden
        )

    def run(self, batch: Batch) -> Forward:
        """Replay the smallest graph that holds the batch."""
        count = batch.num_sequences
        size = next(size for size in self.sizes if size >= count)
        key = (size, bool((batch.adapters >= 0).any()))
        self._stage(batch, size)
        if key not in self.recorded:
            self.recorded[key] = self._record(*key)
        recorded = self.recorded[key]
        if recorded.graph is None:
            self._compute(recorded.step)
        else:
            recorded.graph.replay()
        return Forward(logits_RV=self.logits[:count], greedy_R=self.greedy[:count])

    def record_all(self) -> None:
        """Record every size without adapters, the largest first, so that the smaller ones reuse its memory."""
        host = self.staging.host()
        for size in reversed(self.sizes):
            self._pad(host, 0, size)
            self.staging.send(self._count(size))
            self.recorded[size, False] = self._record(size, False)

    def forget_adapters(self) -> None:
        """Graphs with adapters hold addresses that are no longer theirs."""
        self.recorded = {key: recorded for key, recorded in self.recorded.items() if not key[1]}

    def _count(self, size: int) -> int:
        return len(ROWS) * aligned(size) + size * self.table_width

    def _stage(self, batch: Batch, size: int) -> None:
        count = batch.num_sequences
        host = self.staging.host()
        stride = aligned(size)
        previous = batch.previous_rows
        host[:count] = batch.token_ids
        host[stride : stride + count] = -1 if previous is None else previous
        host[2 * stride : 2 * stride + count] = batch.positions
        host[3 * stride : 3 * stride + count] = batch.slots
        host[4 * stride : 4 * stride + count] = batch.lengths
        host[5 * stride : 5 * stride + count] = batch.adapters
        tables = host[len(ROWS) * stride : self._count(size)].reshape(size, self.table_width)
        tables[:count, : batch.block_tables.shape[1]] = batch.block_tables
        self._pad(host, count, size)
        self.staging.send(self._count(size))

    def _pad(self, host: np.ndarray, count: int, size: int) -> None:
        stride = aligned(size)
        values = (0, -1, 0, self.scratch_block * self.block_size, 1, -1)
        for row, value in enumerate(values):
            host[row * stride + count : row * stride + size] = value
        tables = host[len(ROWS) * stride : self._count(size)].reshape(size, self.table_width)
        tables[count:, 0] = self.scratch_block

    def _record(self, size: int, lora: bool) -> _Recorded:
        step = self._step(size, lora)
        if self.memory is None:
            return _Recorded(None, step)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._compute(step)  # compiles kernels and sets up cuBLAS, which a recording may not do
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory):
            self._compute(step)
        return _Recorded(graph, step)

    def _step(self, size: int, lora: bool) -> Step:
        stride = aligned(size)
        numbers = self.staging.numbers
        rows = {name: numbers[index * stride : index * stride + size] for index, name in enumerate(ROWS)}
        tables = numbers[len(ROWS) * stride : self._count(size)].view(size, self.table_width)
        plan = Plan(
            tables_SB=tables,
            starts=self.starts[: size + 1],
            lengths_S=rows["lengths"],
            decode_sequences=self.starts[:size],
            tile_sequences=self.none,
            tile_firsts=self.none,
            splits=self.splits[size],
            scratch=self.scratch,
        )
        return Step(
            token_ids=rows["token_ids"],
            previous_rows=rows["previous_rows"],
            positions=rows["positions"],
            slots=rows["slots"],
            plan=plan,
            adapter_rows=AdapterRows(slots_T=rows["adapters"]) if lora else None,
        )

    def _compute(self, step: Step) -> None:
        size = step.token_ids.shape[0]
        residual_TK, delta_TK = self.decoder.run(step, self.previous_ids)
        hidden_TK = self.decoder.final_norm(residual_TK, delta_TK)
        self.decoder.weights.head.logits(hidden_TK, self.logits[:size])
        kernels.argmax(self.logits[:size], self.greedy[:size])
