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
import triton

from midwatch.engine.cuda.attention import precision
from midwatch.engine.cuda.launch import launch
from midwatch.engine.cuda.linear_kernels import row_kernel, rows_kernel
from midwatch.engine.cuda.quantized_kernels import dequantize_kernel, quantized_row_kernel, quantized_rows_kernel

Bits = Literal[4, 8, 16]

FEW_ROWS = 16
"""Up to so many rows our kernels beat the library where they can add to the residual as well."""
QUANTIZED_MAX_ROWS = 32
"""Up to so many rows quantized weights are unpacked inside the product; above, before it."""
INT4_GROUP = 32
INT8_GROUP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocking:
    """How a kernel is compiled: outputs and inputs per tile, warps, depth of the load pipeline."""

    outputs: int
    inputs: int
    warps: int
    stages: int


ROW_BLOCKING = Blocking(outputs=8, inputs=256, warps=2, stages=4)
ROW_ADD_BLOCKING = Blocking(outputs=8, inputs=512, warps=4, stages=4)
ROWS_BLOCKING = Blocking(outputs=16, inputs=256, warps=2, stages=4)
QUANTIZED_ROW_BLOCKING = Blocking(outputs=4, inputs=512, warps=4, stages=1)
QUANTIZED_ROW_ADD_BLOCKING = Blocking(outputs=8, inputs=512, warps=4, stages=4)
QUANTIZED_FEW_BLOCKING = Blocking(outputs=32, inputs=128, warps=2, stages=4)
QUANTIZED_ROWS_BLOCKING = Blocking(outputs=64, inputs=128, warps=4, stages=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """y = x Wᵀ + b. `weight` is [N, K], or codes: uint8 [N, K] or [N, K / 2] with `scales` and `minima`."""

    weight: torch.Tensor
    outputs: int
    inputs: int
    bits: Bits = 16
    group: int = 32
    scales: torch.Tensor | None = None
    minima: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads of the weights."""
        parts = (self.weight, self.scales, self.minima, self.bias)
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
        grid = (triton.cdiv(outputs, blocking.outputs),)
        few = {"ROWS": max(8, triton.next_power_of_2(rows)), "BLOCK_N": blocking.outputs}
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
        width = self.inputs // 2 if self.bits == 4 else self.inputs
        groups = max(_block(width, blocking.inputs, self.group) // self.group, 1)
        even = {"EVEN": width % (groups * self.group) == 0}
        packed = {"G": groups, "GROUP": self.group, "BITS": self.bits}
        codes = (self.weight, self.scales, _or(self.minima, self.scales))
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
        width = self.inputs // 2 if self.bits == 4 else self.inputs
        groups = max(_block(width, 512, self.group) // self.group, 1)
        rows = 8 if self.outputs % 8 == 0 else 1
        launch(
            dequantize_kernel,
            (self.outputs // rows, triton.cdiv(width, groups * self.group)),
            (self.weight, self.scales, _or(self.minima, self.scales), out_NK, self.inputs),
            BITS=self.bits,
            GROUP=self.group,
            G=groups,
            BLOCK_N=rows,
        )
        return out_NK

    def _blocking(self, rows: int, add: bool) -> Blocking:
        if self.bits < 16 and rows > 1:
            return QUANTIZED_FEW_BLOCKING if rows <= FEW_ROWS else QUANTIZED_ROWS_BLOCKING
        if self.bits < 16:
            return QUANTIZED_ROW_ADD_BLOCKING if add else QUANTIZED_ROW_BLOCKING
        if rows > 1:
            return ROWS_BLOCKING
        return ROW_ADD_BLOCKING if add else ROW_BLOCKING


def make_linear(weight_NK: torch.Tensor, bits: Bits, bias_N: torch.Tensor | None = None) -> Linear:
    """A linear layer of plain weights, in `bits`; in 16 where a row does not divide into groups."""
    outputs, inputs = weight_NK.shape
    if bits == 8 and inputs % 32 == 0:
        group = INT8_GROUP if inputs % INT8_GROUP == 0 else 32
        codes, scales = quantize_int8(weight_NK, group)
        minima = None
    elif bits == 4 and inputs % (2 * INT4_GROUP) == 0:
        group = INT4_GROUP
        codes, scales, minima = quantize_int4(weight_NK, group)
    else:
        return Linear(weight=weight_NK.contiguous(), outputs=outputs, inputs=inputs, bias=bias_N)
    return Linear(
        weight=codes,
        outputs=outputs,
        inputs=inputs,
        bits=bits,
        group=group,
        scales=scales,
        minima=minima,
        bias=bias_N,
    )


def quantize_int8(weight_NK: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [N, K] and scales float16 [N, K / group]: w ≈ (code - 128) · scale."""
    weight_NGg = weight_NK.float().view(weight_NK.shape[0], -1, group)
    scale_NG1 = (weight_NGg.abs().amax(dim=-1, keepdim=True) / 127).clamp_min(1e-7).half()
    codes = (weight_NGg / scale_NG1.float()).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    return codes.view(weight_NK.shape), scale_NG1.squeeze(-1).contiguous()


def quantize_int4(weight_NK: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 [N, K / 2], scales and minima float16 [N, K / group]: w ≈ code · scale + minimum."""
    rows, columns = weight_NK.shape
    weight_NGg = weight_NK.float().view(rows, -1, group)
    low_NG1 = weight_NGg.amin(dim=-1, keepdim=True).half()
    scale_NG1 = ((weight_NGg.amax(dim=-1, keepdim=True) - low_NG1.float()) / 15).clamp_min(1e-7).half()
    codes = ((weight_NGg - low_NG1.float()) / scale_NG1.float()).round_().clamp_(0, 15).to(torch.uint8)
    codes = codes.view(rows, 2, columns // 2)
    packed = codes[:, 0] | (codes[:, 1] << 4)
    return packed.contiguous(), scale_NG1.squeeze(-1).contiguous(), low_NG1.squeeze(-1).contiguous()


def _block(width: int, wanted: int, least: int) -> int:
    """The largest power of two up to `wanted` that divides `width`, or `least`, whose last tile is masked."""
    block = wanted
    while width % block and block > least:
        block //= 2
    return max(block, least)


def _or(tensor: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return other if tensor is None else tensor
