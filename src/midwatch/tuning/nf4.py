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
    """Widen the weight of a bitsandbytes linear that `has_kernel` into `out_OI`, whose rows may lie apart."""
    from midwatch.tuning import kernels

    kernels.dequantize(linear.weight.data, linear.weight.quant_state, out_OI)


def widened(linears: list[Any], like: Tensor, margin: int = 0) -> list[Tensor]:
    """Weights [outputs, inputs] of linears that share an input, as pieces whose rows follow each other.

    Where our kernel widens them they become one piece (one matrix product for all) with `margin` unset numbers behind
    each row; other weights are pieces of their own, since joining them would copy them.
    """
    if all(has_kernel(linear) for linear in linears):
        sizes, inputs = [linear.out_features for linear in linears], linears[0].in_features
        joined = torch.empty(sum(sizes), inputs + margin, dtype=like.dtype, device=like.device)[:, :inputs]
        for linear, piece in zip(linears, torch.split(joined, sizes), strict=True):
            dequantize(linear, piece)
        return [joined]
    return [_piece(linear).to(like.dtype) for linear in linears]


def _piece(linear: Any) -> Tensor:
    weight: Tensor = linear.weight
    if is_nf4(linear):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, linear.weight.quant_state)
    return weight
