"""A LoRA adapter as numbers: for some linears of some layers, y += (x Aᵀ) Bᵀ · scale. Source: Hu et al.

(arXiv 2106.09685), section 4.1. Files are read in peft's layout (`adapter_config.json` beside
`adapter_model.safetensors`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """`a` [rank, in] and `b` [out, rank], float32, `scale` already multiplied into `b`."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`pairs` by (layer, linear), linear one of `LINEARS`. Rows of q and k are in half-split order, as peft's are."""

    name: str
    rank: int
    pairs: dict[tuple[int, str], LoraPair]
