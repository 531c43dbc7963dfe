"""Rotary position embedding: turn each pair of a head's dimensions by an angle that grows with the position.

Source: Su et al., "RoFormer" (arXiv 2104.09864), equation 34. Dimension j of a head is paired with dimension j + D / 2:
together they are one complex number, and a rotation is one complex product.
Shapes: T tokens, H heads, D head size, d = D / 2 pairs, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def rotation_table(num_positions: int, head_dim: int, base: float, factors: Sequence[float] = ()) -> torch.Tensor:
    """The unit complex numbers exp(i · p · base^(-2j/D) / factor_j), complex64 of shape [P, 1, d].

    `factors` are d divisors of the frequencies, or none.
    """
    exponents_d = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies_d = base**-exponents_d
    if factors:
        frequencies_d = frequencies_d / torch.tensor(factors, dtype=torch.float64)
    angles_Pd = torch.outer(torch.arange(num_positions, dtype=torch.float64), frequencies_d)
    return torch.polar(torch.ones_like(angles_Pd), angles_Pd).to(torch.complex64)[:, None, :]


def rotate_(x_THD: torch.Tensor, rotation_T1d: torch.Tensor) -> None:
    """Rotate queries or keys in place; `rotation_T1d` holds each token's row of the table. Computed in float32."""
    x_TH2d = torch.unflatten(x_THD, -1, (2, -1))
    real_THd, imaginary_THd = x_TH2d.float().unbind(-2)
    turned_THd = torch.complex(real_THd, imaginary_THd) * rotation_T1d
    x_TH2d.copy_(torch.view_as_real(turned_THd).transpose(-1, -2))
