"""Frozen weights of a linear, in the type that activations have: NF4 is widened, anything else is taken as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_nf4(linear: Any) -> bool:
    """Whether a linear's weight is packed in four bits by bitsandbytes."""
    return getattr(linear.weight, "quant_state", None) is not None


def has_kernel(linear: Any) -> bool:
    """Whether our kernel can widen it: on CUDA, NF4 in blocks of 64 with double quantization, whole blocks a row."""
    state = linear.weight.quant_state if is_nf4(linear) else None
    if state is None or not linear.weight.is_cuda:
        return False
    return bool(state.nested) and (state.quant_type, state.blocksize) == ("nf4", 64) and linear.in_features % 64 == 0


def dequantize(linear: Any, out_OI: Tensor) -> None:
    """Widen a bitsandbytes linear's weight into `out_OI`."""
    weight, state = linear.weight, linear.weight.quant_state
    if has_kernel(linear):
        from midwatch.tuning import kernels

        kernels.dequantize(weight.data, state, out_OI)
        return
    from bitsandbytes.functional import dequantize_4bit

    if state.dtype == out_OI.dtype:
        dequantize_4bit(weight.data, state, out=out_OI)
    else:
        out_OI.copy_(dequantize_4bit(weight.data, state))


def widened(linears: list[Any], like: Tensor, margin: int = 0) -> list[Tensor]:
    """Weights [outputs, inputs] of linears that share an input, as pieces whose rows follow each other.

    NF4 becomes one piece (one matrix product for all); other weights are given as they are, since joining them would
    copy them. `margin`: unset numbers behind each row of NF4's piece (only where `has_kernel`).
    """
    if not all(is_nf4(linear) for linear in linears):
        return [linear.weight.to(like.dtype) for linear in linears]
    sizes = [linear.out_features for linear in linears]
    inputs = linears[0].in_features
    joined = torch.empty(sum(sizes), inputs + margin, dtype=like.dtype, device=like.device)[:, :inputs]
    for linear, piece in zip(linears, torch.split(joined, sizes), strict=True):
        dequantize(linear, piece)
    return [joined]
