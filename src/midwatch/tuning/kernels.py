"""Triton kernels of a training step: what lies between the matrix products. Imported only where there is a CUDA device.

Each has a twin in PyTorch in `pointwise.py`, which says what it computes; a test holds the two together.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_kernel(x_ptr, w_ptr, y_ptr, size, y_stride, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(x_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / size + epsilon)
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = (x * scale).to(y_ptr.dtype.element_ty).to(tl.float32) * w
    tl.store(y_ptr + row * y_stride + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward_kernel(grad_ptr, x_ptr, w_ptr, add_ptr, out_ptr, size, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(x_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / size + epsilon)
    unit = x * scale
    dx = scale * (g - unit * (tl.sum(g * unit, 0) / size))
    dx += tl.load(add_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + at, dx.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rope_kernel(x_ptr, cos_ptr, sin_ptr, row_stride, heads, sign, HALF: tl.constexpr, HEADS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, HALF)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    inside = (head < heads)[:, None] & (at >= 0)[None, :]
    cos = tl.load(cos_ptr + row * 2 * HALF + at).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + row * 2 * HALF + at).to(tl.float32)[None, :] * sign
    place = x_ptr + row * row_stride + head[:, None] * 2 * HALF + at[None, :]
    a = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (a * cos - b * sin).to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(place + HALF, (b * cos + a * sin).to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_kernel(gu_ptr, out_ptr, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(gu_ptr + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gu_ptr + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    activated = (g * tl.sigmoid(g)).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * size + at, (activated * u).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward_kernel(grad_ptr, gu_ptr, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = gu_ptr + row * 2 * size + at
    g = tl.load(gate, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate + size, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    silu = g * s
    kind = gu_ptr.dtype.element_ty
    tl.store(gate, (grad * u * s * (1 + g * (1 - s))).to(kind), mask=inside)
    tl.store(gate + size, (grad * silu).to(kind), mask=inside)


@triton.jit
def _dequantize_kernel(
    packed_ptr,
    code_ptr,
    absmax_ptr,
    absmax_code_ptr,
    absmax_scale_ptr,
    offset_ptr,
    out_ptr,
    blocks,
    row_blocks,
    row_stride,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < blocks
    level = tl.load(absmax_ptr + block, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax_code_ptr + level) * tl.load(absmax_scale_ptr + block // 256, mask=inside, other=0.0)
    scale = (scale + tl.load(offset_ptr))[:, None]
    pair = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    both = tl.load(packed_ptr + pair, mask=inside[:, None], other=0).to(tl.int32)
    first = (tl.load(code_ptr + (both >> 4)) * scale).to(out_ptr.dtype.element_ty)
    second = (tl.load(code_ptr + (both & 15)) * scale).to(out_ptr.dtype.element_ty)
    row = block // row_blocks
    at = (row * row_stride + (block - row * row_blocks) * 64)[:, None] + tl.arange(0, 64)[None, :]
    tl.store(out_ptr + at, tl.interleave(first, second), mask=inside[:, None])


@triton.jit
def _cross_entropy_kernel(logits_ptr, labels_ptr, loss_ptr, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * size
    label = tl.load(labels_ptr + row)
    lane = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, size, BLOCK):
        x = tl.load(logits_ptr + begin + lane, mask=begin + lane < size, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(most, x)
        seen = larger > float("-inf")
        total = tl.where(seen, total * tl.exp(most - larger) + tl.exp(x - larger), 0.0)
        most = larger
    peak = tl.max(most, 0)
    norm = peak + tl.log(tl.sum(tl.where(most > float("-inf"), total * tl.exp(most - peak), 0.0), 0))
    tl.store(loss_ptr + row, norm - tl.load(logits_ptr + label).to(tl.float32))
    tl.debug_barrier()
    for begin in range(0, size, BLOCK):
        at = begin + lane
        x = tl.load(logits_ptr + at, mask=at < size, other=float("-inf")).to(tl.float32)
        p = tl.exp(x - norm) - tl.where(at == label, 1.0, 0.0)
        tl.store(logits_ptr + at, p.to(logits_ptr.dtype.element_ty), mask=at < size)


def norm(x: Tensor, weight: Tensor, epsilon: float, margin: int) -> Tensor:
    """`pointwise.norm`."""
    rows, size = x.shape
    out = x.new_empty(rows, size + margin)
    block = triton.next_power_of_2(size)
    _norm_kernel[(rows,)](x, weight, out, size, size + margin, epsilon, BLOCK=block, num_warps=8)
    return out[:, :size]


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, epsilon: float, add: Tensor) -> Tensor:
    """`pointwise.norm_backward`; the result takes the place of `grad`."""
    block = triton.next_power_of_2(x.shape[1])
    _norm_backward_kernel[(x.shape[0],)](grad, x, weight, add, grad, x.shape[1], epsilon, BLOCK=block, num_warps=8)
    return grad


def rope(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, sign: float) -> None:
    """`pointwise.rope`, in place."""
    tokens, heads, size = x_THD.shape
    grid = (tokens, triton.cdiv(heads, 8))
    _rope_kernel[grid](x_THD, cos_TD, sin_TD, x_THD.stride(0), heads, sign, HALF=size // 2, HEADS=8, num_warps=4)


def swiglu(gu: Tensor) -> Tensor:
    """`pointwise.swiglu`."""
    tokens, size = gu.shape[0], gu.shape[1] // 2
    out = gu.new_empty(tokens, size)
    _swiglu_kernel[(tokens, triton.cdiv(size, 2048))](gu, out, size, BLOCK=2048, num_warps=8)
    return out


def swiglu_backward(grad: Tensor, gu: Tensor) -> Tensor:
    """`pointwise.swiglu_backward`; the result takes the place of `gu`."""
    tokens, size = grad.shape
    _swiglu_backward_kernel[(tokens, triton.cdiv(size, 2048))](grad, gu, size, BLOCK=2048, num_warps=8)
    return gu


def dequantize(packed: Tensor, state: Any, out: Tensor) -> None:
    """NF4 in blocks of 64 with double quantization (bitsandbytes' layout), into `out`, whose rows may lie apart."""
    blocks, row_blocks = out.numel() // 64, out.shape[1] // 64
    _dequantize_kernel[(triton.cdiv(blocks, 32),)](
        packed, state.code, state.absmax, state.state2.code, state.state2.absmax, state.offset, out, blocks,
        row_blocks, out.stride(0), BLOCKS=32, num_warps=4,
    )  # fmt: skip


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood [N] in float32 of each label; its gradient in the logits takes their place."""
    loss = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _cross_entropy_kernel[(logits.shape[0],)](logits, labels, loss, logits.shape[1], BLOCK=4096, num_warps=8)
    return loss
