"""Attention of one sequence's new tokens over all its keys and values: the formula, and the fused path that is used.

Source: Vaswani et al. (arXiv 1706.03762), equation 1; grouped queries: Ainslie et al. (arXiv 2305.13245).
Legend: T new tokens, L tokens so far (the new ones are the last T), H query heads, N kv heads, G = H / N, D head size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

PACKED_MAX_TOKENS = 32


def self_attention(q_THD: torch.Tensor, k_NLD: torch.Tensor, v_NLD: torch.Tensor) -> torch.Tensor:
    """The reference: softmax(q kᵀ / sqrt(D) + causal mask) v, by plain matrix products. Returns [T, H, D]."""
    num_tokens, num_heads, head_dim = q_THD.shape
    num_kv_heads, length, _ = k_NLD.shape
    group = num_heads // num_kv_heads
    k_HLD = k_NLD.repeat_interleave(group, dim=0)
    v_HLD = v_NLD.repeat_interleave(group, dim=0)
    scores_HTL = q_THD.transpose(0, 1) @ k_HLD.transpose(1, 2) / math.sqrt(head_dim)
    position_T = torch.arange(length - num_tokens, length)
    future_TL = torch.arange(length)[None, :] > position_T[:, None]
    weights_HTL = torch.softmax(scores_HTL.masked_fill(future_TL, -math.inf), dim=-1)
    return (weights_HTL @ v_HLD).transpose(0, 1)


def causal_mask(num_tokens: int, length: int, num_heads: int, num_kv_heads: int) -> torch.Tensor | None:
    """The mask that `fused_attention` needs (True is visible), made once per step and shared by all layers.

    None where the shape needs no mask: one new token sees everything, and a whole prompt is plainly causal.
    """
    if num_tokens in (1, length):
        return None
    position_T = torch.arange(length - num_tokens, length)
    visible_TL = torch.arange(length)[None, :] <= position_T[:, None]
    if num_tokens <= PACKED_MAX_TOKENS:
        return visible_TL.repeat(num_heads // num_kv_heads, 1)
    return visible_TL


def fused_attention(
    q_TNGD: torch.Tensor, k_1NLD: torch.Tensor, v_1NLD: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The same function by PyTorch's fused kernel. `mask` comes from `causal_mask`. Returns [T, N, G, D].

    A few tokens are packed as G · T queries of one kv head each, so that keys are read once and not once per query
    head; that is several times faster in decode.
    """
    num_tokens, num_kv_heads, group, head_dim = q_TNGD.shape
    if num_tokens == 1:
        return F.scaled_dot_product_attention(q_TNGD, k_1NLD, v_1NLD)
    if mask is not None and num_tokens <= PACKED_MAX_TOKENS:
        q_1NQD = q_TNGD.permute(1, 2, 0, 3).reshape(1, num_kv_heads, -1, head_dim)
        out = F.scaled_dot_product_attention(q_1NQD, k_1NLD, v_1NLD, attn_mask=mask)
        return out.view(num_kv_heads, group, num_tokens, head_dim).permute(2, 0, 1, 3)
    q_1HTD = q_TNGD.flatten(1, 2).transpose(0, 1)[None]
    out = F.scaled_dot_product_attention(
        q_1HTD, k_1NLD, v_1NLD, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(num_tokens, num_kv_heads, group, head_dim)
