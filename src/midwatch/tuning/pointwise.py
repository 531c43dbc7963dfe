"""What lies between the matrix products of a decoder layer, forward and backward.

On CUDA each is one Triton kernel of `kernels.py`; elsewhere the PyTorch below, which is also what the kernels are
tested against. Rounding follows transformers: a norm and a SiLU are rounded to the activations' type before they are
multiplied.

Shapes: T tokens, E features, F features of the gated layer, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _kernels() -> Any:
    from midwatch.tuning import kernels

    return kernels


def norm(x_TE: Tensor, weight_E: Tensor, epsilon: float, *, margin: int = 0) -> Tensor:
    """RMSNorm: x / sqrt(mean(x²) + epsilon) · weight. On CUDA each row may be followed by a `margin` (`lowrank.py`)."""
    if x_TE.is_cuda:
        made: Tensor = _kernels().norm(x_TE, weight_E, epsilon, margin)
        return made
    wide = x_TE.float()
    scale = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (wide * scale).to(x_TE.dtype) * weight_E.to(x_TE.dtype)


def norm_backward(grad_TE: Tensor, x_TE: Tensor, weight_E: Tensor, epsilon: float, add_TE: Tensor) -> Tensor:
    """Gradient of `norm` in x, plus `add_TE` (the gradient that goes past the norm). May overwrite `grad_TE`."""
    if x_TE.is_cuda:
        made: Tensor = _kernels().norm_backward(grad_TE, x_TE, weight_E, epsilon, add_TE)
        return made
    wide = x_TE.float()
    scale = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    unit, grad = wide * scale, grad_TE.float() * weight_E
    out = scale * (grad - unit * (grad * unit).mean(-1, keepdim=True))
    return out.add_(add_TE).to(x_TE.dtype)


def rope(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, *, backward: bool = False) -> None:
    """Turn pairs (d, d + D/2) by their position's angle, in place; the gradient turns back."""
    sign = -1.0 if backward else 1.0
    if x_THD.is_cuda:
        _kernels().rope(x_THD, cos_TD, sin_TD, sign)
        return
    half = x_THD.shape[-1] // 2
    turned = torch.cat([-x_THD[..., half:], x_THD[..., :half]], dim=-1)
    x_THD.mul_(cos_TD[:, None]).add_(turned.mul_(sin_TD[:, None]), alpha=sign)


def swiglu(gu_TF2: Tensor) -> Tensor:
    """SiLU(gate) · up of [gate | up]."""
    if gu_TF2.is_cuda:
        made: Tensor = _kernels().swiglu(gu_TF2)
        return made
    gate, up = gu_TF2.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_backward(grad_TF: Tensor, gu_TF2: Tensor) -> Tensor:
    """Gradient of `swiglu` in [gate | up]; takes the place of `gu_TF2`."""
    if gu_TF2.is_cuda:
        made: Tensor = _kernels().swiglu_backward(grad_TF, gu_TF2)
        return made
    gate, up = gu_TF2.chunk(2, dim=-1)
    activated = F.silu(gate)
    d_gate = torch.ops.aten.silu_backward(grad_TF * up, gate)
    up.copy_(grad_TF * activated)
    gate.copy_(d_gate)
    return gu_TF2
