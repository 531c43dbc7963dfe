"""Attention by document: packed rows, no mask.

A packed batch is one line of T tokens with documents end to end. A dense mask would cost T x T, nearly all of it zeros;
instead each document attends to itself. On CUDA one call of a variable-length flash kernel does all of them; on a CPU
documents of like length are padded to one batch of matrix products, whose padding causality hides.

Shapes: T tokens of the whole batch, H query heads, K key and value heads, D head size; G documents of one group, M
tokens of its longest, Q query heads of one key head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAME = "midwatch_packed"
"""Under this name transformers' models find `attend_packed`."""

_QUERIES = 512
"""Queries of one document whose scores a CPU holds at one time."""
_WASTE = 1.3
"""A group is padded to at most this many times its tokens."""


class Kept(NamedTuple):
    """What an attention's gradient needs."""

    q_THD: Tensor
    k_TKD: Tensor
    v_TKD: Tensor
    out_THD: Tensor
    """The attention's result."""
    lse_HT: Tensor | None
    """Log-sum-exp of the scores; None where the backward makes it again (CPU)."""


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

    @cached_property
    def groups(self) -> list[_Group]:
        """The documents by like length, each group with little padding."""
        starts = self.starts.tolist()
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        groups: list[list[int]] = []
        tokens = 0
        for one in order:
            length = self.lengths[one]
            if groups and (len(groups[-1]) + 1) * length <= _WASTE * (tokens + length):
                groups[-1].append(one)
                tokens += length
            else:
                groups.append([one])
                tokens = length
        return [_Group.of([starts[one] for one in group], [self.lengths[one] for one in group]) for group in groups]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Documents of like length, padded to the longest."""

    gather: Tensor
    """[G * M]: token of each place; a padding place names the last token of the batch before it."""
    real: Tensor
    """Which of those places are no padding."""
    tokens: Tensor
    """The tokens at the real places."""
    shape: tuple[int, int]
    """(G, M)."""

    @classmethod
    def of(cls, starts: list[int], lengths: list[int]) -> _Group:
        offsets = torch.arange(max(lengths))
        inside = offsets < torch.tensor(lengths)[:, None]
        gather = torch.tensor(starts)[:, None] + offsets.minimum(torch.tensor(lengths)[:, None] - 1)
        real = inside.flatten().nonzero().flatten()
        gather = gather.flatten()
        return cls(gather=gather, real=real, tokens=gather[real], shape=(len(starts), max(lengths)))

    def heads(self, rows_TKQD: Tensor) -> Tensor:
        """[T, K, Q, D] to [G, K, Q, M, D]."""
        return rows_TKQD.index_select(0, self.gather).view(*self.shape, *rows_TKQD.shape[1:]).permute(0, 2, 3, 1, 4)

    def put(self, out_TKQD: Tensor, rows_GKQMD: Tensor) -> None:
        """Write the real places of [G, K, Q, M, D] to their tokens."""
        rows = rows_GKQMD.permute(0, 3, 1, 2, 4).reshape(-1, *out_TKQD.shape[1:])
        out_TKQD.index_copy_(0, self.tokens, rows.index_select(0, self.real))


def _probabilities(q_GKQMD: Tensor, k_GKMD: Tensor, begin: int, scale: float) -> Tensor:
    """Softmax of causal scores for queries that start at place `begin`: [G, K, Q * queries, keys]."""
    groups, kv_heads, heads, queries, size = q_GKQMD.shape
    scores = (q_GKQMD.reshape(groups, kv_heads, heads * queries, size) @ k_GKMD.transpose(-1, -2)).float().mul_(scale)
    keys = k_GKMD.shape[2]
    late = torch.arange(keys) > torch.arange(begin, begin + queries)[:, None]
    scores.view(groups, kv_heads, heads, queries, keys).masked_fill_(late, float("-inf"))
    return scores.softmax(dim=-1).to(q_GKQMD.dtype)


def _by_key_head(rows_THD: Tensor, k_TKD: Tensor) -> Tensor:
    """[T, H, D] to [T, K, Q, D]."""
    return rows_THD.reshape(rows_THD.shape[0], k_TKD.shape[1], -1, rows_THD.shape[2])


def _forward_padded(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, documents: Documents, scale: float) -> Tensor:
    q_TKQD = _by_key_head(q_THD, k_TKD)
    out = torch.empty_like(q_TKQD, memory_format=torch.contiguous_format)
    for group in documents.groups:
        q = group.heads(q_TKQD)
        k, v = (group.heads(part[:, :, None]).squeeze(2) for part in (k_TKD, v_TKD))
        rows = torch.empty_like(q, memory_format=torch.contiguous_format)
        for begin in range(0, group.shape[1], _QUERIES):
            end = min(begin + _QUERIES, group.shape[1])
            p = _probabilities(q[:, :, :, begin:end], k[:, :, :end], begin, scale)
            rows[:, :, :, begin:end] = (p @ v[:, :, :end]).view(q[:, :, :, begin:end].shape)
        group.put(out, rows)
    return out.flatten(1, 2)


def _backward_padded(grad_THD: Tensor, kept: Kept, documents: Documents, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    q_THD, k_TKD, v_TKD, out_THD, _ = kept
    q_TKQD, grad_TKQD = _by_key_head(q_THD, k_TKD), _by_key_head(grad_THD, k_TKD)
    delta_TKQ1 = _by_key_head(grad_THD * out_THD, k_TKD).sum(-1, keepdim=True, dtype=torch.float32)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_TKQD, k_TKD, v_TKD))
    for group in documents.groups:
        q, grad, delta = group.heads(q_TKQD), group.heads(grad_TKQD), group.heads(delta_TKQ1)
        real = torch.zeros(group.gather.shape, dtype=torch.bool)
        real[group.real] = True
        grad = grad * real.view(group.shape[0], 1, 1, group.shape[1], 1)  # padding asks for nothing
        delta = delta * real.view(group.shape[0], 1, 1, group.shape[1], 1)
        k, v = (group.heads(part[:, :, None]).squeeze(2) for part in (k_TKD, v_TKD))
        rows = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk_rows, dv_rows = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for begin in range(0, group.shape[1], _QUERIES):
            end = min(begin + _QUERIES, group.shape[1])
            q_part, grad_part, delta_part = (x[:, :, :, begin:end].flatten(2, 3) for x in (q, grad, delta))
            p = _probabilities(q[:, :, :, begin:end], k[:, :, :end], begin, scale)
            dv_rows[:, :, :end] += p.transpose(-1, -2) @ grad_part
            ds = ((grad_part @ v[:, :, :end].transpose(-1, -2)).float() - delta_part).mul_(p).mul_(scale).to(p.dtype)
            rows[:, :, :, begin:end] = (ds @ k[:, :, :end]).view(q[:, :, :, begin:end].shape)
            dk_rows[:, :, :end] += ds.transpose(-1, -2) @ q_part
        group.put(dq, rows)
        group.put(dk[:, :, None], dk_rows[:, :, None].to(dk.dtype))
        group.put(dv[:, :, None], dv_rows[:, :, None].to(dv.dtype))
    return dq.flatten(1, 2), dk, dv


def forward(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, documents: Documents, scale: float) -> Kept:
    """Causal attention within each document."""
    if not q_THD.is_cuda:
        return Kept(q_THD, k_TKD, v_TKD, _forward_padded(q_THD, k_TKD, v_TKD, documents, scale), None)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q_THD, k_TKD, v_TKD, documents.starts, documents.starts, documents.longest, documents.longest,
        0.0, True, False, scale=scale,
    )  # fmt: skip
    return Kept(q_THD, k_TKD, v_TKD, out, lse)


def backward(grad_THD: Tensor, kept: Kept, documents: Documents, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` in its queries, keys and values, shaped like them."""
    if kept.lse_HT is None:
        return _backward_padded(grad_THD, kept, documents, scale)
    unused = torch.empty(2, dtype=torch.uint64, device=grad_THD.device)  # a dropout's seed and offset
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad_THD, *kept, documents.starts, documents.starts,
        documents.longest, documents.longest, 0.0, True, unused, unused, scale=scale,
    )  # fmt: skip
    return gradients


class _Attend(torch.autograd.Function):
    """`forward` and `backward` for autograd."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        kept = forward(q, k, v, *rest)
        ctx.save_for_backward(*kept)
        ctx.rest = rest
        return kept.out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(grads[0], Kept(*ctx.saved_tensors), *ctx.rest), None, None


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
    parts = (part[0].transpose(0, 1) for part in (query, key, value))
    out: Tensor = _Attend.apply(*parts, documents, scale)  # type: ignore[no-untyped-call]
    return out[None], None


def register() -> None:
    """Make `NAME` known to transformers; masks are made as for SDPA. Doing it twice changes nothing."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend_packed)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
