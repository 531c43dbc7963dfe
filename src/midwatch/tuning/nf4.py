"""Frozen weights of a linear, in the type that activations have: NF4 is widened, anything else is taken as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_nf4(linear: Any) -> bool:
    """Whether a linear's weight is packed in four bits by bitsandbytes."""
    return getattr(linear.weight, "quant_state", None) is not None


def dequantize(linear: Any, out_OI: Tensor) -> None:
    """Widen a bitsandbytes linear's weight into the contiguous `out_OI`."""
    weight, state = linear.weight, linear.weight.quant_state
    if out_OI.is_cuda and state.nested and state.quant_type == "nf4" and state.blocksize == 64:
        from midwatch.tuning import kernels

        kernels.dequantize(weight.data, state, out_OI)
        return
    from bitsandbytes.functional import dequantize_4bit

    if state.dtype == out_OI.dtype:
        dequantize_4bit(weight.data, state, out=out_OI)
    else:
        out_OI.copy_(dequantize_4bit(weight.data, state))


def widened(linears: list[Any], like: Tensor) -> list[Tensor]:
    """Weights [outputs, inputs] of linears that share an input, as pieces whose rows follow each other.

    NF4 becomes one piece (one matrix product for all); other weights are given as they are, since joining them would
    copy them.
    """
    if not all(is_nf4(linear) for linear in linears):
        return [linear.weight.to(like.dtype) for linear in linears]
    sizes = [linear.out_features for linear in linears]
    joined = torch.empty(sum(sizes), linears[0].in_features, dtype=like.dtype, device=like.device)
    for linear, piece in zip(linears, torch.split(joined, sizes), strict=True):
        dequantize(linear, piece)
    return [joined]
