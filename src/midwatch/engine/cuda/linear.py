"""Linear layers: a few rows through our kernels, many through cuBLAS; weights plain, in eight bits or in four.

For a few rows a step is as fast as its weights stream, so those kernels do the neighbouring work too. For many, the
library's matrix product wins, on weights that are unpacked first if they are quantized. Which is taken where was
measured (bench/gpu_engine.py). Legend in `linear_kernels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import triton

from midwatch.engine.cuda.attention import precision
from midwatch.engine.cuda.launch import launch, launch_options
from midwatch.engine.cuda.linear_kernels import dequantize_kernel, row_kernel, rows_kernel

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """y = x Wᵀ + b. `weight` is [N, K], or codes: int8 [N, K] or uint8 [N, K / 2] with `scales` and `minima`."""

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
        if x_MK.shape[0] <= (FEW_ROWS if self.bits == 16 else QUANTIZED_MAX_ROWS):
            self.fused(x_MK, out_MN)
            return
        weight = self.weight if self.bits == 16 else self.dense(x_MK.dtype)
        if x_MK.is_cuda and x_MK.dtype is not torch.float32:
            torch.ops.aten.mm.dtype_out(x_MK, weight.t(), torch.float32, out=out_MN)
        else:
            out_MN.copy_(F.linear(x_MK.float(), weight.float()))

    def fused(
        self,
        x_MK: torch.Tensor,
        out_MN: torch.Tensor,
        *,
        norm_K: torch.Tensor | None = None,
        eps: float = 0.0,
        activation: str | None = None,
        add: bool = False,
        early: bool = False,
        blocking: Blocking | None = None,
    ) -> None:
        """The product of up to 64 rows with what stands around it, in one kernel.

        `norm_K`: x is normalised first. `activation`: the first half of the outputs gates the second, N / 2 remain.
        `add`: out_MN is added to, not overwritten.
        """
        rows, _ = x_MK.shape
        outputs = self.outputs // 2 if activation else self.outputs
        assert out_MN.shape == (rows, outputs) and out_MN.is_contiguous() and x_MK.stride(1) == 1
        if blocking is None:
            blocking = ROWS_BLOCKING if rows > 1 else (ROW_ADD_BLOCKING if add else ROW_BLOCKING)
        width = self.inputs // 2 if self.bits == 4 else self.inputs
        block_k = _block_k(width, blocking.inputs, self.group if self.bits < 16 else 16)
        arrays = (x_MK, self.weight, _or(self.scales, x_MK), _or(self.minima, x_MK), _or(norm_K, x_MK))
        arrays += (_or(self.bias, x_MK), out_MN)
        few = rows > 1
        arguments = (*arrays, eps, rows, outputs, self.inputs, x_MK.stride(0)) if few else (*arrays, eps, outputs, self.inputs)
        launch(
            rows_kernel if few else row_kernel,
            (triton.cdiv(outputs, blocking.outputs),),
            arguments,
            **({"ROWS": max(8, triton.next_power_of_2(rows))} if few else {}),
            BLOCK_N=blocking.outputs,
            BLOCK_K=block_k,
            BITS=self.bits,
            GROUP=self.group,
            NORMED=norm_K is not None,
            GATED=activation is not None,
            GELU=activation == "gelu_tanh",
            BIAS=self.bias is not None,
            ADD=add,
            EVEN=width % block_k == 0,
            **({"PRECISION": precision(x_MK.dtype)} if few else {}),
            EARLY=early,
            **({} if few else {"STAGES": blocking.stages}),
            num_warps=blocking.warps,
            num_stages=blocking.stages,
            **launch_options(early),
        )

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights as numbers, [N, K]."""
        if self.bits == 16:
            return self.weight
        out_NK = torch.empty(self.outputs, self.inputs, dtype=dtype, device=self.weight.device)
        width = self.inputs // 2 if self.bits == 4 else self.inputs
        block_k = _block_k(width, 1024, self.group)
        launch(
            dequantize_kernel,
            (self.outputs, triton.cdiv(width, block_k)),
            (self.weight, self.scales, _or(self.minima, self.weight), out_NK, self.inputs),
            BITS=self.bits,
            GROUP=self.group,
            BLOCK_K=block_k,
        )
        return out_NK


def make_linear(weight_NK: torch.Tensor, bits: Bits, bias_N: torch.Tensor | None = None) -> Linear:
    """A linear layer of plain weights, in `bits`; in 16 where a row does not divide into groups."""
    outputs, inputs = weight_NK.shape
    if bits == 8 and inputs % 32 == 0:
        group = INT8_GROUP if inputs % INT8_GROUP == 0 else 32
        codes, scales = quantize_int8(weight_NK, group)
        return Linear(
            weight=codes, outputs=outputs, inputs=inputs, bits=8, group=group, scales=scales, bias=bias_N
        )
    if bits == 4 and inputs % (2 * INT4_GROUP) == 0:
        codes, scales, minima = quantize_int4(weight_NK, INT4_GROUP)
        return Linear(
            weight=codes,
            outputs=outputs,
            inputs=inputs,
            bits=4,
            group=INT4_GROUP,
            scales=scales,
            minima=minima,
            bias=bias_N,
        )
    return Linear(weight=weight_NK.contiguous(), outputs=outputs, inputs=inputs, bias=bias_N)


def quantize_int8(weight_NK: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [N, K] and scales float16 [N, K / group]: w ≈ code · scale."""
    weight_NGg = weight_NK.float().view(weight_NK.shape[0], -1, group)
    scale_NG1 = (weight_NGg.abs().amax(dim=-1, keepdim=True) / 127).clamp_min(1e-7).half()
    codes = (weight_NGg / scale_NG1.float()).round_().clamp_(-127, 127).to(torch.int8)
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


def _block_k(width: int, wanted: int, multiple: int) -> int:
    """The largest power of two up to `wanted` that divides `width`; if that is tiny, one that masks the rest."""
    block = wanted
    while width % block and block > max(multiple, 64):
        block //= 2
    return max(block, multiple)


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor
