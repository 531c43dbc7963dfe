"""The loss over completion tokens only, without ever holding the logits of a batch.

The head is frozen, so its gradient to the hidden states is known as soon as a chunk's logits are: the forward makes
both, the backward only scales. Memory is O(chunk x vocabulary), and the head is multiplied
twice in all, never three times.

Shapes: N counted tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = {"cuda": 512, "cpu": 128}
"""Tokens whose logits exist at one time: enough to fill a GPU, few enough for a CPU's cache."""


class _HeadLoss(torch.autograd.Function):
    """Sum of -log p(label) over N tokens; differentiable in the hidden states."""

    @staticmethod
    def forward(ctx: Any, hidden_NE: Tensor, head_VE: Tensor, labels_N: Tensor, chunk: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        wanted = ctx.needs_input_grad[0]
        gradient_NE = torch.empty_like(hidden_NE) if wanted else None
        for begin in range(0, hidden_NE.shape[0], chunk):
            rows = slice(begin, begin + chunk)
            losses, d_logits = _losses(hidden_NE[rows].to(head_VE.dtype) @ head_VE.T, labels_N[rows])
            total += losses.sum()
            if gradient_NE is not None:
                gradient_NE[rows] = d_logits @ head_VE
        ctx.gradient = gradient_NE
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient.mul_(scale.to(ctx.gradient.dtype)), None, None, None


def _losses(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods in float32, and their gradient in the logits (whose memory it may take)."""
    if logits_NV.is_cuda:
        from midwatch.tuning import kernels

        return kernels.cross_entropy(logits_NV, labels_N), logits_NV
    picked = labels_N[:, None]
    logs = torch.log_softmax(logits_NV, dim=1, dtype=torch.float32)
    losses = -logs.gather(1, picked)
    probabilities = logs.exp_()
    probabilities.scatter_add_(1, picked, probabilities.new_full(picked.shape, -1.0))
    return losses, probabilities.to(logits_NV.dtype)


def completion_loss(hidden_NE: Tensor, head_VE: Tensor, labels_N: Tensor) -> Tensor:
    """Sum, in float32, of the negative log-likelihoods of `labels_N` under `hidden_NE @ head_VE.T` (a frozen head)."""
    chunk = CHUNK["cuda" if hidden_NE.is_cuda else "cpu"]
    total: Tensor = _HeadLoss.apply(hidden_NE, head_VE, labels_N, chunk)  # type: ignore[no-untyped-call]
    return total


def counted(labels_RL: Tensor) -> tuple[Tensor, Tensor]:
    """Where the hidden states that predict counted labels lie in the flattened batch, and those labels.

    `labels_RL` [R, L] are unshifted, -100 where not counted: the label at t is predicted from t - 1.
    """
    labels = labels_RL.clone()
    labels[:, 0] = -100
    at = (labels.flatten() != -100).nonzero().flatten()
    return at - 1, labels.flatten()[at]
