"""Root-mean-square normalisation:

x / sqrt(mean(x²) + eps) · w. Source: Zhang and Sennrich (arXiv 1910.07467), eq. 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class RMSNorm:
    """Normalise the last dimension of [T, K] and scale it by a learned weight [K]."""

    def __init__(self, weight_K: torch.Tensor, eps: float) -> None:
        self.weight_K = weight_K
        self.eps = eps

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return [T, K] in the dtype of `x_TK`."""
        return F.rms_norm(x_TK, self.weight_K.shape, self.weight_K, self.eps)
