"""Several LoRA adapters in one step: each row meets the matrices of its own slot, rows without one are skipped.

y += (x Aᵀ) Bᵀ (Hu et al., arXiv 2106.09685, section 4.1). Our linears are fused (q, k, v; gate, up), so a fused linear
has several parts, each with its own A and B. Up to `GATHERED_MAX_ROWS` rows, a kernel looks the matrices up per row, as
in Punica (Chen et al., arXiv 2310.18547); longer steps take each slot's rows through plain matrix products.
Legend: T rows, S slots, P parts, R rank (padded to one power of two), K inputs, N outputs of all parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from midwatch.engine.checkpoint import ModelConfig
from midwatch.engine.cuda.launch import cdiv, launch, power_of_2
from midwatch.engine.lora import Adapter
from midwatch.errors import ModelError

GATHERED_MAX_ROWS = 64
MAX_RANK = 128
SHARES = 8
SHRINK_BLOCK, EXPAND_BLOCK = 256, 128
FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRows:
    """Which slot each row takes, int32 [T], -1 for none; and for long steps each slot's rows."""

    slots_T: torch.Tensor
    groups: tuple[tuple[int, torch.Tensor], ...] = ()


@dataclass(slots=True)
class _Stack:
    """The adapters of one fused linear: `a` [S, P · R, K] and `b` [S, N, R]; part p ends at output `ends[p]`."""

    a: torch.Tensor
    b: torch.Tensor
    ends: tuple[int, ...]


class AdapterBank:
    """All loaded adapters. A slot's numbers lie at fixed addresses, so that recorded graphs see a new adapter."""

    def __init__(self, config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.num_slots = num_slots
        self.dtype = dtype
        self.device = device
        self.rank = 0
        self.stacks: dict[tuple[int, str], _Stack] = {}
        self.adapters: dict[int, Adapter] = {}

    def load(self, slot: int, adapter: Adapter) -> bool:
        """Put an adapter under a slot; True if the stacks had to grow (recorded graphs are void then).

        Raises `ModelError` if its shapes are those of another base, its rank is too large, or the slot is out of range.
        """
        if not 0 <= slot < self.num_slots:
            raise ModelError(
                f"There is no adapter slot {slot}; slots run from 0 to {self.num_slots - 1}.",
                "Raise engine.max_adapters.",
            )
        self._check(adapter)
        rank = max(16, power_of_2(max([pair.a.shape[0] for pair in adapter.pairs.values()], default=1)))
        self.adapters[slot] = adapter
        grew: bool = rank > self.rank
        if grew:
            self._grow(rank)
        else:
            self._write(slot, adapter)
        return grew

    def unload(self, slot: int) -> None:
        """Forget a slot's adapter; its rows would add nothing from now on."""
        if self.adapters.pop(slot, None) is None:
            return
        for stack in self.stacks.values():
            stack.b[slot].zero_()

    def apply(self, layer: int, name: str, x_TK: torch.Tensor, y_TN: torch.Tensor, rows: AdapterRows) -> None:
        """y += what the adapters of the rows add to the fused linear `name`."""
        stack = self.stacks.get((layer, name))
        if stack is None:
            return
        if rows.groups:
            for slot, index in rows.groups:
                x_gK = x_TK.index_select(0, index)
                low_gPR = (x_gK @ stack.a[slot].t()).view(index.numel(), len(stack.ends), -1)
                start = 0
                for part, end in enumerate(stack.ends):
                    y_TN[:, start:end].index_add_(0, index, low_gPR[:, part] @ stack.b[slot, start:end].t())
                    start = end
            return
        num_rows, inputs = x_TK.shape
        parts, outputs = len(stack.ends), y_TN.shape[1]
        shares = SHARES if inputs >= SHARES * SHRINK_BLOCK else 1
        low = torch.empty(num_rows, shares, parts * self.rank, dtype=torch.float32, device=x_TK.device)
        launch(
            _shrink,
            (num_rows, parts, shares),
            (x_TK, stack.a, low, rows.slots_T, inputs, x_TK.stride(0)),
            PARTS=parts,
            RANK=self.rank,
            BLOCK=SHRINK_BLOCK,
            SHARES=shares,
        )
        ends = (*stack.ends, outputs, outputs)
        launch(
            _expand,
            (num_rows, cdiv(outputs, EXPAND_BLOCK)),
            (low, stack.b, y_TN, rows.slots_T, outputs, ends[0], ends[1]),
            PARTS=parts,
            RANK=self.rank,
            BLOCK=EXPAND_BLOCK,
            SHARES=shares,
        )

    def _check(self, adapter: Adapter) -> None:
        for (layer, name), pair in adapter.pairs.items():
            inputs, outputs = _shape(self.config, name)
            rank = pair.a.shape[0]
            good = 0 <= layer < self.config.num_layers and rank <= MAX_RANK
            if not good or tuple(pair.a.shape) != (rank, inputs) or tuple(pair.b.shape) != (outputs, rank):
                raise ModelError(
                    f"Adapter {adapter.name} has A {tuple(pair.a.shape)} and B {tuple(pair.b.shape)} for {name} of "
                    f"layer {layer}; this model has {self.config.num_layers} layers and takes A [rank, {inputs}] and "
                    f"B [{outputs}, rank] of rank up to {MAX_RANK}.",
                    "Load an adapter that was trained on this base.",
                )

    def _grow(self, rank: int) -> None:
        self.rank = rank
        self.stacks.clear()
        for layer in range(self.config.num_layers):
            for name, parts in FUSED.items():
                shapes = [_shape(self.config, part) for part in parts]
                ends = tuple(sum(outputs for _, outputs in shapes[: index + 1]) for index in range(len(parts)))
                a = torch.zeros(self.num_slots, len(parts) * rank, shapes[0][0], dtype=self.dtype, device=self.device)
                b = torch.zeros(self.num_slots, ends[-1], rank, dtype=self.dtype, device=self.device)
                self.stacks[layer, name] = _Stack(a, b, ends)
        for slot, adapter in self.adapters.items():
            self._write(slot, adapter)

    def _write(self, slot: int, adapter: Adapter) -> None:
        for (layer, name), stack in self.stacks.items():
            stack.a[slot].zero_()
            stack.b[slot].zero_()
            start = 0
            for part, end in zip(FUSED[name], stack.ends, strict=True):
                pair = adapter.pairs.get((layer, part))
                if pair is not None:
                    rank = pair.a.shape[0]
                    first = FUSED[name].index(part) * self.rank
                    stack.a[slot, first : first + rank].copy_(pair.a)
                    stack.b[slot, start:end, :rank].copy_(pair.b)
                start = end


def _shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """(inputs, outputs) of a linear."""
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    return {
        "q": (config.hidden_size, queries),
        "k": (config.hidden_size, keys),
        "v": (config.hidden_size, keys),
        "o": (queries, config.hidden_size),
        "gate": (config.hidden_size, config.intermediate_size),
        "up": (config.hidden_size, config.intermediate_size),
        "down": (config.intermediate_size, config.hidden_size),
    }[name]


@triton.jit
def _shrink(
    x,
    a,
    low,
    slots,
    K,
    stride,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARES: tl.constexpr,
):
    """One program per (row, part, share of the inputs): the R numbers that its share adds to x Aᵀ, float32."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    share = tl.program_id(2)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        r = tl.arange(0, RANK)
        acc = tl.zeros([RANK, BLOCK], tl.float32)
        matrix = a + (slot * PARTS + part) * RANK * K
        count = tl.cdiv(tl.cdiv(K, SHARES), BLOCK) * BLOCK
        end = tl.minimum(K, (share + 1) * count)
        for start in range(share * count, end, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < end
            tile = tl.load(matrix + r[:, None] * K + k[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
            acc += tile * tl.load(x + row * stride + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        tl.store(low + (row * SHARES + share) * (PARTS * RANK) + part * RANK + r, tl.sum(acc, 1))


@triton.jit
def _expand(
    low,
    b,
    y,
    slots,
    N,
    end_0,
    end_1,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARES: tl.constexpr,
):
    """One program per (row, block of outputs): y += low Bᵀ, each output with the numbers of its part."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        r = tl.arange(0, RANK)
        inside = n < N
        part = tl.minimum(tl.where(n >= end_0, 1, 0) + tl.where(n >= end_1, 1, 0), PARTS - 1)
        place = low + row * (SHARES * PARTS * RANK) + (part * RANK)[:, None] + r[None, :]
        numbers = tl.load(place)
        for share in tl.static_range(1, SHARES):
            numbers += tl.load(place + share * (PARTS * RANK))
        matrix = tl.load(b + (slot * N + n)[:, None] * RANK + r[None, :], mask=inside[:, None], other=0.0)
        total = tl.sum(numbers * matrix.to(tl.float32), 1)
        target = y + row * N + n
        total += tl.load(target, mask=inside, other=0.0).to(tl.float32)
        tl.store(target, total.to(y.dtype.element_ty), mask=inside)
