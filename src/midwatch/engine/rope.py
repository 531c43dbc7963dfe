"""Rotary position embedding: turn each pair of a head's dimensions by an angle that grows with the position.

Source: Su et al., "RoFormer" (arXiv 2104.09864), equation 34. GGUF stores the rows of a Llama's Q and K so that the two
halves of a pair are neighbours, so a pair is one complex number and a rotation is one complex product.
Shapes: T tokens, H heads, D head size, P positions.
"""

from __future__ import annotations

import torch


def rotation_table(num_positions: int, head_dim: int, base: float) -> torch.Tensor:
    """The unit complex numbers exp(i · p · base^(-2j/D)), complex64 of shape [P, 1, D / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float64), base**-exponents)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None, :]


def rotate_(x_THD: torch.Tensor, rotation_T1d: torch.Tensor) -> None:
    """Rotate queries or keys in place; `rotation_T1d` holds each token's row of the table. Computed in float32."""
    pairs = torch.view_as_complex(x_THD.float().reshape(*x_THD.shape[:-1], -1, 2))
    x_THD.copy_(torch.view_as_real(pairs * rotation_T1d).flatten(-2))
