"""Attention: the formula as plain matrix products, the fused path that is used, and the pages that it reads from.

Source: Vaswani et al. (arXiv 1706.03762), equation 1; grouped queries: Ainslie et al. (arXiv 2305.13245); a sliding
window: Beltagy et al. (arXiv 2004.05150), section 3.1; pages: Kwon et al. (arXiv 2309.06180), section 4.1.
Legend: T new tokens, L keys that they may see (their own are the last T), H query heads, N kv heads, G = H / N, D head
size, B blocks of the pool, P places of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from midwatch.engine.batch import Batch
from midwatch.engine.checkpoint import ModelConfig

PACKED_MAX_TOKENS = 32


def self_attention(
    q_THD: torch.Tensor, k_NLD: torch.Tensor, v_NLD: torch.Tensor, *, scale: float, window: int = 0
) -> torch.Tensor:
    """The reference: softmax(q kᵀ · scale + causal mask) v, by plain matrix products. Returns [T, H, D].

    With a window, a token sees itself and the `window` - 1 tokens before it; 0 is no window.
    """
    num_tokens, num_heads, _ = q_THD.shape
    num_kv_heads, length, _ = k_NLD.shape
    group = num_heads // num_kv_heads
    k_HLD = k_NLD.repeat_interleave(group, dim=0)
    v_HLD = v_NLD.repeat_interleave(group, dim=0)
    scores_HTL = q_THD.transpose(0, 1) @ k_HLD.transpose(1, 2) * scale
    hidden_TL = ~visible(num_tokens, length, window)
    weights_HTL = torch.softmax(scores_HTL.masked_fill(hidden_TL, -math.inf), dim=-1)
    return (weights_HTL @ v_HLD).transpose(0, 1)


def visible(num_tokens: int, length: int, window: int) -> torch.Tensor:
    """Which keys a token sees, bool [T, L]: itself, and those before it that are within the window."""
    position_T1 = torch.arange(length - num_tokens, length)[:, None]
    position_L = torch.arange(length)
    seen_TL = position_L <= position_T1
    return seen_TL & (position_L > position_T1 - window) if window else seen_TL


def fused_attention(
    q_TNGD: torch.Tensor, k_1NLD: torch.Tensor, v_1NLD: torch.Tensor, mask: torch.Tensor | None, *, scale: float
) -> torch.Tensor:
    """The same function by PyTorch's fused kernel. `mask` comes from `attention_mask`. Returns [T, N, G, D].

    A few tokens are packed as G · T queries of one kv head each, so that keys are read once and not once per query
    head; that is several times faster in decode.
    """
    num_tokens, num_kv_heads, group, head_dim = q_TNGD.shape
    if num_tokens == 1:
        return F.scaled_dot_product_attention(q_TNGD, k_1NLD, v_1NLD, scale=scale)
    if mask is not None and num_tokens <= PACKED_MAX_TOKENS:
        q_1NQD = q_TNGD.permute(1, 2, 0, 3).reshape(1, num_kv_heads, -1, head_dim)
        out = F.scaled_dot_product_attention(q_1NQD, k_1NLD, v_1NLD, attn_mask=mask, scale=scale)
        return out.view(num_kv_heads, group, num_tokens, head_dim).permute(2, 0, 1, 3)
    q_1HTD = q_TNGD.flatten(1, 2).transpose(0, 1)[None]
    out = F.scaled_dot_product_attention(
        q_1HTD, k_1NLD, v_1NLD, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(num_tokens, num_kv_heads, group, head_dim)


def attention_mask(num_tokens: int, length: int, group: int, window: int) -> torch.Tensor | None:
    """The mask that `fused_attention` needs (True is visible), made once per step and shared by layers.

    None where the shape needs no mask: one token that sees every key, or a whole prompt that is plainly causal.
    """
    if num_tokens == 1 or (num_tokens == length and not 0 < window < length):
        return None
    seen_TL = visible(num_tokens, length, window)
    return seen_TL.repeat(group, 1) if num_tokens <= PACKED_MAX_TOKENS else seen_TL


@dataclass(frozen=True, slots=True)
class Pages:
    """What the rows of one sequence read: `blocks` of the pool, without the first `skip` places, `length` in all.

    `blocks` is a slice where they lie side by side, so that nothing is copied. Keys that no row's window reaches are
    left out, so a lone row never needs a mask.
    """

    rows: slice
    blocks: slice | torch.Tensor
    skip: int
    length: int
    mask: torch.Tensor | None


def lay_out(batch: Batch, config: ModelConfig, window: int, block_size: int) -> list[Pages]:
    """The pages of every sequence of a step, for layers of this window."""
    group = config.num_heads // config.num_kv_heads
    pages = []
    for index, length in enumerate(batch.lengths.tolist()):
        rows = slice(int(batch.starts[index]), int(batch.starts[index + 1]))
        num_tokens = rows.stop - rows.start
        first = max(0, length - num_tokens - window + 1) if window else 0
        table = batch.block_tables[index, first // block_size : -(-length // block_size)]
        adjacent = bool(np.all(np.diff(table) == 1))
        blocks = slice(int(table[0]), int(table[-1]) + 1) if adjacent else torch.from_numpy(table).long()
        mask = attention_mask(num_tokens, length - first, group, window)
        pages.append(Pages(rows, blocks, first % block_size, length - first, mask))
    return pages


class PagedKV:
    """The pool of keys and values: one tensor [2N, B, P, D] per layer, the N key heads before the N value heads.

    A block is one run of P places in each head, so a gather moves runs of P · D numbers.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, num_blocks: int, block_size: int) -> None:
        shape = (2 * config.num_kv_heads, num_blocks, block_size, config.head_dim)
        # Zeros and not any bytes: a place that no token sees has weight 0, and 0 · NaN would be NaN.
        self._layers = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_layers)]

    def write(self, layer: int, slots_T: torch.Tensor, kv_T2ND: torch.Tensor) -> None:
        """Put the keys and values of new tokens into their slots."""
        self._layers[layer].flatten(1, 2).index_copy_(1, slots_T, kv_T2ND.transpose(0, 1))

    def read(self, layer: int, pages: Pages) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one sequence, each [1, N, L, D]."""
        pool = self._layers[layer]
        blocks = pages.blocks
        chosen = pool[:, blocks] if isinstance(blocks, slice) else pool.index_select(1, blocks)
        kv_2NLD = chosen.flatten(1, 2)[:, pages.skip : pages.skip + pages.length]
        k_1NLD, v_1NLD = kv_2NLD[None].chunk(2, dim=1)
        return k_1NLD, v_1NLD

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, all sources read before any destination is written."""
        if pairs:
            sources, destinations = torch.tensor(pairs).unbind(1)
            for pool in self._layers:
                pool.index_copy_(1, destinations, pool.index_select(1, sources))


def paged_attention(
    q_TNGD: torch.Tensor, kv: PagedKV, layer: int, pages: Sequence[Pages], *, scale: float
) -> torch.Tensor:
    """Attention of all rows of a step, sequence by sequence, over keys and values in the pool. Returns [T, N, G, D]."""
    outs = [fused_attention(q_TNGD[item.rows], *kv.read(layer, item), item.mask, scale=scale) for item in pages]
    return outs[0] if len(outs) == 1 else torch.cat(outs)
