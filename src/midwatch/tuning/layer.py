"""One decoder layer of the Llama family as one autograd function whose gradient is written by hand.

Autograd would keep every intermediate or compute all of it again. Written by hand, the way back keeps what is asked for
(`Keep`), computes again only what gradients need (never the last product of the layer), widens each NF4 weight once for
both, and spends its buffers twice. The base is frozen, so there are gradients in the input and in the adapters only.

Shapes: T tokens, E hidden, F features of the gated layer, H and K heads of queries and keys, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from midwatch.tuning import attention, pointwise
from midwatch.tuning.attention import Documents, Kept
from midwatch.tuning.lowrank import Group
from midwatch.tuning.offload import Shelf


class Keep(Enum):
    """What of a layer lives from the way forth to the way back."""

    INPUT = "input"
    """Its input alone."""
    ATTENTION = "attention"
    """Also what surrounds the attention; the gated layer's first products are made again."""
    HOST = "host"
    """The same as `ATTENTION`, in host memory."""
    ALL = "all"
    """Every product; only norms and SiLU are made again."""

    def numbers(self, layer: Layer) -> int:
        """How many numbers a token keeps on the device."""
        hidden: int = layer.down.outputs
        around = 2 * hidden + layer.qkv.outputs + layer.o.inputs
        by_kind = {Keep.INPUT: hidden, Keep.ATTENTION: around, Keep.HOST: 0}
        return int(by_kind.get(self, around + layer.gate_up.outputs))


@dataclass(frozen=True, kw_only=True)
class Step:
    """What all layers of one pass share."""

    documents: Documents
    cos_TD: Tensor
    sin_TD: Tensor
    shelf: Shelf | None
    """Where layers that keep things in host memory put them; on a CPU there is none."""


class Layer:
    """A decoder layer's parts, taken from transformers' module and peft's adapters."""

    def __init__(self, module: Any, config: Any, dtype: torch.dtype) -> None:
        attention_part, gated = module.self_attn, module.mlp
        self.qkv = Group([attention_part.q_proj, attention_part.k_proj, attention_part.v_proj], dtype)
        self.o = Group([attention_part.o_proj], dtype)
        self.gate_up = Group([gated.gate_proj, gated.up_proj], dtype, joined=True)
        self.down = Group([gated.down_proj], dtype)
        self.groups = [self.qkv, self.o, self.gate_up, self.down]
        self.norms = (module.input_layernorm, module.post_attention_layernorm)
        self.scale = float(attention_part.scaling)
        self.head_size = int(attention_part.head_dim)
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        self.parameters = [weight for group in self.groups for weight in group.parameters()]
        """All A and B, in the order of the gradients."""

    def norm(self, which: int, x_TE: Tensor) -> Tensor:
        """The norm before the attention (0) or before the gated layer (1)."""
        module = self.norms[which]
        margin = (self.qkv, self.gate_up)[which].margin
        return pointwise.norm(x_TE, module.weight, module.variance_epsilon, margin=margin)

    def norm_backward(self, which: int, grad_TE: Tensor, x_TE: Tensor, add_TE: Tensor) -> Tensor:
        """Its gradient, plus `add_TE`."""
        module = self.norms[which]
        return pointwise.norm_backward(grad_TE, x_TE, module.weight, module.variance_epsilon, add_TE)

    def split_heads(self, qkv_TO: Tensor) -> list[Tensor]:
        """Queries [T, H, D], keys and values [T, K, D], as views."""
        heads, kv_heads = self.heads
        rows = qkv_TO.view(qkv_TO.shape[0], heads + 2 * kv_heads, self.head_size)
        return list(torch.split(rows, [heads, kv_heads, kv_heads], dim=1))


@dataclass
class _Attended:
    """The first half of a layer."""

    qkv: Any
    """Queries, keys (both turned by their positions) and values side by side: [T, (H + 2 K) D]."""
    out_THD: Any
    lse_HT: Tensor | None
    """What the attention gave, and its log-sum-exp."""
    xa_qkv: Tensor
    xa_o: Tensor
    h_TE: Any
    """The residual stream behind the attention."""
    normed_TE: Tensor | None = None
    weights_qkv: list[Tensor] = field(default_factory=list)
    weights_o: list[Tensor] = field(default_factory=list)


def _attend(layer: Layer, x_TE: Tensor, step: Step) -> _Attended:
    normed = layer.norm(0, x_TE)
    weights_qkv = layer.qkv.weights(x_TE)
    qkv, xa_qkv = layer.qkv.forward(normed, weights_qkv)
    q, k, v = layer.split_heads(qkv)
    pointwise.rope(q, step.cos_TD, step.sin_TD)
    pointwise.rope(k, step.cos_TD, step.sin_TD)
    kept = attention.forward(q, k, v, step.documents, layer.scale)
    weights_o = layer.o.weights(x_TE)
    h, xa_o = layer.o.forward(kept.out_THD.flatten(1), weights_o, add_TO=x_TE)
    return _Attended(qkv, kept.out_THD, kept.lse_HT, xa_qkv, xa_o, h, normed, weights_qkv, weights_o)


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, layer: Layer, step: Step, keep: Keep | None, *_: Tensor) -> Tensor:
        half = _attend(layer, x_TE, step)
        half.normed_TE, half.weights_qkv, half.weights_o = None, [], []
        normed = layer.norm(1, half.h_TE)
        gu, xa_gu = layer.gate_up.forward(normed, layer.gate_up.weights(x_TE))
        del normed
        m = pointwise.swiglu(gu)
        y, xa_down = layer.down.forward(m, layer.down.weights(x_TE), add_TO=half.h_TE)
        if keep is None:
            return y
        ctx.layer, ctx.step = layer, step
        ctx.x, ctx.half = x_TE, None if keep is Keep.INPUT else half
        ctx.gated = (gu, xa_gu, xa_down) if keep is Keep.ALL else None
        ctx.parcel = None
        if keep is Keep.HOST and step.shelf is not None:
            ctx.parcel = step.shelf.put(x_TE, half.qkv, half.out_THD, half.h_TE)
            ctx.x = half.qkv = half.out_THD = half.h_TE = None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        layer, step, grad_y = ctx.layer, ctx.step, grads[0].contiguous()
        x, half, gated = ctx.x, ctx.half, ctx.gated
        if ctx.parcel is not None:
            x, half.qkv, half.out_THD, half.h_TE = ctx.parcel.open()
        ctx.x = ctx.half = ctx.gated = ctx.parcel = None
        half = half or _attend(layer, x, step)
        grad_h, grads_gated = _gated_backward(layer, grad_y, half.h_TE, gated)
        del gated, grad_y
        grad_x, grads_attended = _attended_backward(layer, step, grad_h, x, half, wants_x=ctx.needs_input_grad[0])
        return grad_x, None, None, None, *grads_attended, *grads_gated


def _gated_backward(
    layer: Layer, grad_y: Tensor, h_TE: Tensor, gated: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient in the residual stream behind the attention, and in the adapters of gate, up and down."""
    normed = layer.norm(1, h_TE)
    weights_gu = layer.gate_up.weights(h_TE)
    if gated is None:
        gu, xa_gu = layer.gate_up.forward(normed, weights_gu)
        m = pointwise.swiglu(gu)
        xa_down = m @ layer.down.a_RI.T
    else:
        gu, xa_gu, xa_down = gated
        m = pointwise.swiglu(gu)
    grad_m, grads_down = layer.down.backward(grad_y, m, xa_down, layer.down.weights(h_TE))
    del m
    grad_gu = pointwise.swiglu_backward(grad_m, gu)
    del grad_m
    grad_normed, grads_gu = layer.gate_up.backward(grad_gu, normed, xa_gu, weights_gu)
    return layer.norm_backward(1, grad_normed, h_TE, grad_y), [*grads_gu, *grads_down]


def _attended_backward(
    layer: Layer, step: Step, grad_h: Tensor, x_TE: Tensor, half: _Attended, *, wants_x: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradient in the layer's input, where wanted, and in the adapters of q, k, v and o."""
    out = half.out_THD
    q, k, v = layer.split_heads(half.qkv)
    kept = Kept(q, k, v, out, half.lse_HT)
    weights_o = half.weights_o or layer.o.weights(x_TE)
    grad_out, grads_o = layer.o.backward(grad_h, out.flatten(1), half.xa_o, weights_o)
    del weights_o
    half.weights_o = []
    grad_q, grad_k, grad_v = attention.backward(grad_out.view(out.shape), kept, step.documents, layer.scale)
    del grad_out
    pointwise.rope(grad_q, step.cos_TD, step.sin_TD, backward=True)
    pointwise.rope(grad_k, step.cos_TD, step.sin_TD, backward=True)
    grad_qkv = torch.cat([grad_q, grad_k, grad_v], dim=1).flatten(1)
    normed = layer.norm(0, x_TE) if half.normed_TE is None else half.normed_TE
    if not wants_x:
        grads_qkv = layer.qkv.adapter_gradients(grad_qkv, grad_qkv @ layer.qkv.b_OR, normed, half.xa_qkv)
        return None, [*grads_qkv, *grads_o]
    weights_qkv = half.weights_qkv or layer.qkv.weights(x_TE)
    grad_normed, grads_qkv = layer.qkv.backward(grad_qkv, normed, half.xa_qkv, weights_qkv)
    return layer.norm_backward(0, grad_normed, x_TE, grad_h), [*grads_qkv, *grads_o]


def run(layer: Layer, x_TE: Tensor, step: Step, keep: Keep) -> Tensor:
    """The layer's output [T, E]. Where gradients are off nothing is kept."""
    wanted = keep if torch.is_grad_enabled() else None
    y: Tensor = _LayerFunction.apply(x_TE, layer, step, wanted, *layer.parameters)  # type: ignore[no-untyped-call]
    return y
