"""Linear layers: a few rows through our kernels, many through cuBLAS; weights plain, in eight bits or in four.

For a few rows a step is as fast as its weights stream, so those kernels do the neighbouring work too. For many, the
library's matrix product wins, on weights that are unpacked first if they are quantized. Which is taken where, and with
which blocking, was measured (bench/gpu_sweep.py). Legend in `linear_kernels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from midwatch.engine.cuda.attention import precision
from midwatch.engine.cuda.launch import cdiv, launch, power_of_2
from midwatch.engine.cuda.linear_kernels import row_kernel, rows_kernel
from midwatch.engine.cuda.quantized_kernels import dequantize_kernel, quantized_row_kernel, quantized_rows_kernel

Bits = Literal[4, 8, 16]

FEW_ROWS = 16
"""Up to so many rows our kernels beat the library where they can add to the residual as well."""
QUANTIZED_MAX_ROWS = 32
"""Up to so many rows quantized weights are unpacked inside the product; above, before it."""
GROUP = 32
"""Quantized weights that share a step and a base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocking:
    """How a kernel is compiled: outputs and inputs (or words of codes) per tile, warps, depth of the load pipeline."""

    outputs: int
    inputs: int
    warps: int
    stages: int


ROW_BLOCKING = Blocking(outputs=8, inputs=256, warps=2, stages=4)
ROW_ADD_BLOCKING = Blocking(outputs=8, inputs=512, warps=4, stages=4)
ROWS_BLOCKING = Blocking(outputs=16, inputs=256, warps=2, stages=4)
QUANTIZED_ROW_BLOCKING = Blocking(outputs=2, inputs=128, warps=1, stages=3)
QUANTIZED_ROW_ADD_BLOCKING = Blocking(outputs=8, inputs=128, warps=2, stages=3)
QUANTIZED_ROWS_BLOCKING = Blocking(outputs=32, inputs=64, warps=2, stages=2)
QUANTIZED_ROWS_ADD_BLOCKING = Blocking(outputs=32, inputs=32, warps=2, stages=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """y = x Wᵀ + b. `weight` is [N, K], or words of codes, int32 [N, K · bits / 32], with `pairs` per group."""

    weight: torch.Tensor
    outputs: int
    inputs: int
    bits: Bits = 16
    pairs: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads of the weights."""
        parts = (self.weight, self.pairs, self.bias)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def __call__(self, x_MK: torch.Tensor) -> torch.Tensor:
        """[M, N] in the dtype of x."""
        if self.bits == 16:
            return F.linear(x_MK, self.weight, self.bias)
        if x_MK.shape[0] <= QUANTIZED_MAX_ROWS:
            out_MN = torch.empty(x_MK.shape[0], self.outputs, dtype=x_MK.dtype, device=x_MK.device)
            self.fused(x_MK, out_MN)
            return out_MN
        return F.linear(x_MK, self.dense(x_MK.dtype), self.bias)

    def logits(self, x_MK: torch.Tensor, out_MN: torch.Tensor) -> None:
        """x Wᵀ in float32, not rounded to the weights' dtype in between."""
        if x_MK.shape[0] <= FEW_ROWS:
            self.fused(x_MK, out_MN)
        elif x_MK.is_cuda and x_MK.dtype is not torch.float32:
            torch.ops.aten.mm.dtype_out(x_MK, self.dense(x_MK.dtype).t(), torch.float32, out=out_MN)
        else:
            out_MN.copy_(F.linear(x_MK.float(), self.dense(torch.float32)))

    def fused(
        self,
        x_MK: torch.Tensor,
        out_MN: torch.Tensor,
        *,
        norm_K: torch.Tensor | None = None,
        eps: float = 0.0,
        activation: str | None = None,
        add: bool = False,
        blocking: Blocking | None = None,
    ) -> None:
        """The product of up to 64 rows with what stands around it, in one kernel.

        `norm_K`: x is normalised first (of quantized weights: one row only). `activation`: the first half of the
        outputs gates the second, N / 2 remain. `add`: out_MN is added to, not overwritten.
        """
        rows = x_MK.shape[0]
        outputs = self.outputs // 2 if activation else self.outputs
        assert out_MN.shape == (rows, outputs) and out_MN.is_contiguous() and x_MK.stride(1) == 1
        blocking = blocking or self._blocking(rows, add)
        norm, bias = _or(norm_K, x_MK), _or(self.bias, x_MK)
        around = {"GATED": activation is not None, "GELU": activation == "gelu_tanh", "BIAS": self.bias is not None}
        around["ADD"] = add
        options = {"num_warps": blocking.warps, "num_stages": blocking.stages}
        grid = (cdiv(outputs, blocking.outputs),)
        few = {"ROWS": max(8, power_of_2(rows)), "BLOCK_N": blocking.outputs}
        exact = {"PRECISION": precision(x_MK.dtype)}
        sizes = (outputs, self.inputs)
        if self.bits == 16:
            block_k = _block(self.inputs, blocking.inputs, 64)
            even = {"EVEN": self.inputs % block_k == 0}
            arrays = (x_MK, self.weight, norm, bias, out_MN, eps)
            tile = {"BLOCK_K": block_k, "NORMED": norm_K is not None, **around, **even}
            if rows > 1:
                launch(rows_kernel, grid, (*arrays, rows, *sizes, x_MK.stride(0)), **few, **tile, **exact, **options)
            else:
                one = {"BLOCK_N": blocking.outputs, **tile, "STAGES": blocking.stages}
                launch(row_kernel, grid, (*arrays, *sizes), **one, **options)
            return
        width = self.inputs * self.bits // 32
        groups = max(_block(width, blocking.inputs, GROUP) // GROUP, 1)
        even = {"EVEN": width % (groups * GROUP) == 0}
        packed = {"G": groups, "GROUP": GROUP, "BITS": self.bits}
        codes = (self.weight, self.pairs)
        if rows > 1:
            assert norm_K is None, "normalise several rows before a product with quantized weights"
            several = (x_MK, *codes, bias, out_MN, rows, *sizes, x_MK.stride(0))
            launch(quantized_rows_kernel, grid, several, **few, **packed, **around, **even, **exact, **options)
        else:
            tile = {"BLOCK_N": blocking.outputs, **packed, "NORMED": norm_K is not None, **around, **even}
            single = (x_MK, *codes, norm, bias, out_MN, eps, *sizes)
            launch(quantized_row_kernel, grid, single, **tile, STAGES=blocking.stages, **options)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights as numbers, [N, K]."""
        if self.bits == 16:
            return self.weight.to(dtype)
        out_NK = torch.empty(self.outputs, self.inputs, dtype=dtype, device=self.weight.device)
        width = self.inputs * self.bits // 32
        groups = max(_block(width, 128, GROUP) // GROUP, 1)
        rows = 8 if self.outputs % 8 == 0 else 1
        launch(
            dequantize_kernel,
            (self.outputs // rows, cdiv(width, groups * GROUP)),
            (self.weight, self.pairs, out_NK, self.inputs),
            BITS=self.bits,
            GROUP=GROUP,
            G=groups,
            BLOCK_N=rows,
        )
        return out_NK

    def _blocking(self, rows: int, add: bool) -> Blocking:
        if self.bits < 16 and rows > 1:
            return QUANTIZED_ROWS_ADD_BLOCKING if add else QUANTIZED_ROWS_BLOCKING
        if self.bits < 16:
            return QUANTIZED_ROW_ADD_BLOCKING if add else QUANTIZED_ROW_BLOCKING
        if rows > 1:
            return ROWS_BLOCKING
        return ROW_ADD_BLOCKING if add else ROW_BLOCKING


def make_linear(weight_NK: torch.Tensor, bits: Bits, bias_N: torch.Tensor | None = None) -> Linear:
    """A linear layer of plain weights, in `bits`; in 16 where a row does not divide into groups."""
    outputs, inputs = weight_NK.shape
    if bits == 16 or inputs % (GROUP * 32 // bits):
        return Linear(weight=weight_NK.contiguous(), outputs=outputs, inputs=inputs, bias=bias_N)
    words, pairs = quantize(weight_NK, bits)
    return Linear(weight=words, outputs=outputs, inputs=inputs, bits=bits, pairs=pairs, bias=bias_N)


def quantize(weight_NK: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words int32 [N, K · bits / 32] and pairs int32 [N, K / GROUP], as `quantized_kernels.py` describes them.

    Step and base are rounded to bfloat16 outwards first, so that a group's range stays covered; the codes are then the
    nearest to what those numbers give.
    """
    rows = weight_NK.shape[0]
    weight_NGg = weight_NK.float().view(rows, -1, GROUP)
    low_NG1 = weight_NGg.amin(dim=-1, keepdim=True)
    levels = 1 << bits
    span_NG1 = (weight_NGg.amax(dim=-1, keepdim=True) - low_NG1).clamp_min(1e-6)
    step_NG1 = _up(span_NG1 * (levels / (levels - 1)) * (1 + 2.0**-6))
    base_NG1 = -_up(step_NG1.float() - low_NG1)
    steps = (weight_NGg - base_NG1.float()) / step_NG1.float() - 1
    codes = (steps * levels).round_().clamp_(0, levels - 1).to(torch.int32).view(rows, 32 // bits, -1)
    words = codes[:, 0].clone()
    for position in range(1, 32 // bits):
        words |= codes[:, position] << (bits * position)
    halves = [half.squeeze(-1).view(torch.int16).to(torch.int32) for half in (step_NG1, base_NG1)]
    return words, (halves[0] & 0xFFFF) | (halves[1] << 16)


def _up(numbers: torch.Tensor) -> torch.Tensor:
    """Positive numbers in bfloat16, not below what they were."""
    return (numbers * (1 + 2.0**-8)).to(torch.bfloat16)


def _block(width: int, wanted: int, least: int) -> int:
    """The largest power of two up to `wanted` that divides `width`, or `least`, whose last tile is masked."""
    block = wanted
    while width % block and block > least:
        block //= 2
    return max(block, least)


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor
