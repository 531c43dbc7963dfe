"""Attention by document: packed rows, no mask.

A packed batch is one line of T tokens with documents end to end. A dense mask would cost T x T, nearly all of it zeros;
instead each document attends to itself. On CUDA one call of a variable-length kernel does all of them
(`torch.nn.attention.varlen`), elsewhere one causal SDPA per document.

Shapes: T tokens of the whole batch, H query heads, K key and value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "midwatch_packed"
"""Under this name transformers' models find `attend_packed`."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Where the documents of a flattened batch lie."""

    starts: Tensor
    """[documents + 1] int32, on the batch's device: first token of each, and T at the end."""
    lengths: tuple[int, ...]
    """Tokens of each; one sum for the whole batch: T."""
    longest: int
    """Tokens of the longest."""

    @classmethod
    def of(cls, position_ids: Tensor) -> Documents:
        """Read the documents from positions [R, L] that restart at 0 where one begins (a row's start counts as one)."""
        first = position_ids == 0
        first[:, 0] = True
        starts = first.flatten().nonzero().flatten()
        bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])])
        lengths = tuple(bounds.diff().tolist())
        return cls(starts=bounds.to(torch.int32), lengths=lengths, longest=max(lengths))


def attend(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, documents: Documents, scale: float) -> Tensor:
    """Causal attention within each document. Returns [T, H, D]."""
    grouped = q_HTD.shape[0] != k_KTD.shape[0]
    parts = [torch.split(part, list(documents.lengths), dim=1) for part in (q_HTD, k_KTD, v_KTD)]
    out = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=grouped)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(out, dim=2)[0].transpose(0, 1)


def attend_packed(  # noqa: PLR0917 - the order is transformers' interface
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: by document where `documents` are given, else plain SDPA (generation).

    `query` is [1, H, T, D], `key` and `value` [1, K, T, D]. Returns [1, T, H, D].
    """
    if documents is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return plain
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query[0], key[0], value[0], documents, scale)[None], None


def register() -> None:
    """Make `NAME` known to transformers; masks are made as for SDPA. Doing it twice changes nothing."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend_packed)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
