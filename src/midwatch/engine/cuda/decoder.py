"""The decoder's layers over device tensors: one pass for a whole step, plain or fused.

A step of a few rows takes the fused kernels (norm, gate and residual ride along with the matrix products: seven
launches a layer); a longer one, one with adapters, or a family that normalises after its sublayers takes the plain way.
Legend in `kernels.py`; R rows with logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from midwatch.engine.checkpoint import ModelConfig
from midwatch.engine.cuda import kernels
from midwatch.engine.cuda.attention import Plan, attend
from midwatch.engine.cuda.linear import FEW_ROWS, Linear
from midwatch.engine.cuda.lora import AdapterBank, AdapterRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of one layer. Norm weights are float32 [K] (`qk_norms`: [D] each)."""

    attn_norm: torch.Tensor
    qkv: Linear
    o: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    qk_norms: tuple[torch.Tensor, torch.Tensor] | None = None
    post_attn_norm: torch.Tensor | None = None
    post_mlp_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """All weights, and the rotary tables: float32 [P, D / 2] cosines and sines, and which of them a layer takes."""

    embedding_VK: torch.Tensor
    layers: tuple[Layer, ...]
    final_norm_K: torch.Tensor
    head: Linear
    rotations: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    layer_rotations: tuple[int, ...]

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that a decode step reads; of the embedding it reads a few rows only."""
        linears = [linear for layer in self.layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        return sum(linear.num_bytes for linear in [*linears, self.head])


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step's integers on the device, int32 [T], and what attention makes of them.

    `logit_rows` (int64 [R]): all that is wanted after the last layer; None for every row.
    """

    token_ids: torch.Tensor
    previous_rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    plan: Plan
    adapter_rows: AdapterRows | None = None
    logit_rows: torch.Tensor | None = None


class Decoder:
    """Weights, a pool of keys and values [layers, 2, blocks, block size, N, D], and the passes over them."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        pool: torch.Tensor,
        adapters: AdapterBank,
        flash: Callable[..., Any] | None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.pool = pool
        self.adapters = adapters
        self.pools = [(layer[0], layer[1]) for layer in pool]
        self.flash = flash
        self.dtype = pool.dtype

    def run(self, step: Step, previous_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The residual [T, K] after all layers, and the last sublayer's output where it is not added yet.

        Of both only the rows that the step wants, [R, K].
        """
        num_tokens = step.token_ids.shape[0]
        residual_TK = torch.empty(num_tokens, self.config.hidden_size, dtype=self.dtype, device=self.pool.device)
        kernels.embed(
            step.token_ids,
            step.previous_rows,
            previous_ids,
            self.weights.embedding_VK,
            self.config.embedding_scale,
            residual_TK,
        )
        if num_tokens <= FEW_ROWS and step.adapter_rows is None and not self.config.post_norms:
            self._run_fused(residual_TK, step)
            return (residual_TK if step.logit_rows is None else residual_TK.index_select(0, step.logit_rows)), None
        return self._run_plain(residual_TK, step)

    def final_norm(self, residual_RK: torch.Tensor, delta_RK: torch.Tensor | None) -> torch.Tensor:
        """The normalised hidden states [R, K] that the head takes."""
        out_RK = torch.empty_like(residual_RK)
        post = self.weights.layers[-1].post_mlp_norm
        kernels.add_norm(
            delta_RK,
            residual_RK,
            self.weights.final_norm_K,
            self.config.norm_eps,
            out_RK,
            post_weight_K=post if delta_RK is not None else None,
        )
        return out_RK

    def _run_plain(self, residual_TK: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Any step. What the last layer does after attention, it does for the wanted rows only."""
        config, eps = self.config, self.config.norm_eps
        hidden_TK = torch.empty_like(residual_TK)
        act_TI = residual_TK.new_empty(residual_TK.shape[0], config.intermediate_size)
        out_THD = residual_TK.new_empty(residual_TK.shape[0], config.num_heads, config.head_dim)
        delta_TK: torch.Tensor | None = None
        post: torch.Tensor | None = None
        for index, layer in enumerate(self.weights.layers):
            kernels.add_norm(delta_TK, residual_TK, layer.attn_norm, eps, hidden_TK, post_weight_K=post)
            qkv_TC = self._linear(index, "qkv", layer.qkv, hidden_TK, step)
            self._attend(index, layer, qkv_TC, out_THD, step)
            wanted = step.logit_rows if step.adapter_rows is None and index == config.num_layers - 1 else None
            if wanted is not None:
                residual_TK, out_THD = residual_TK.index_select(0, wanted), out_THD.index_select(0, wanted)
                hidden_TK, act_TI = hidden_TK[: wanted.numel()], act_TI[: wanted.numel()]
                if not wanted.numel():
                    return residual_TK, residual_TK
            delta_TK = self._linear(index, "o", layer.o, out_THD.flatten(1), step)
            kernels.add_norm(delta_TK, residual_TK, layer.mlp_norm, eps, hidden_TK, post_weight_K=layer.post_attn_norm)
            gate_up_T2I = self._linear(index, "gate_up", layer.gate_up, hidden_TK, step)
            kernels.activate(gate_up_T2I, act_TI, config.activation)
            del gate_up_T2I
            delta_TK = self._linear(index, "down", layer.down, act_TI, step)
            post = layer.post_mlp_norm
        assert delta_TK is not None, "a model has layers"
        if step.logit_rows is not None and step.adapter_rows is not None:
            return residual_TK.index_select(0, step.logit_rows), delta_TK.index_select(0, step.logit_rows)
        return residual_TK, delta_TK

    def _run_fused(self, residual_TK: torch.Tensor, step: Step) -> None:
        """A few rows. With one, norms and the gate ride along too; with more, the library is faster than that."""
        config = self.config
        num_tokens = residual_TK.shape[0]
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        hidden_TK = torch.empty_like(residual_TK)
        qkv_TC = residual_TK.new_empty(num_tokens, width)
        out_THD = residual_TK.new_empty(num_tokens, config.num_heads, config.head_dim)
        act_TI = residual_TK.new_empty(num_tokens, config.intermediate_size)
        eps = config.norm_eps
        for index, layer in enumerate(self.weights.layers):
            if num_tokens == 1:
                layer.qkv.fused(residual_TK, qkv_TC, norm_K=layer.attn_norm, eps=eps)
            else:
                kernels.add_norm(None, residual_TK, layer.attn_norm, eps, hidden_TK)
                qkv_TC = layer.qkv(hidden_TK)
            self._attend(index, layer, qkv_TC, out_THD, step)
            layer.o.fused(out_THD.view(num_tokens, -1), residual_TK, add=True)
            if num_tokens == 1:
                layer.gate_up.fused(residual_TK, act_TI, norm_K=layer.mlp_norm, eps=eps, activation=config.activation)
            else:
                kernels.add_norm(None, residual_TK, layer.mlp_norm, eps, hidden_TK)
                kernels.activate(layer.gate_up(hidden_TK), act_TI, config.activation)
            layer.down.fused(act_TI, residual_TK, add=True)

    def _linear(self, index: int, name: str, linear: Linear, x_TK: torch.Tensor, step: Step) -> torch.Tensor:
        y_TN = linear(x_TK)
        if step.adapter_rows is not None:
            self.adapters.apply(index, name, x_TK, y_TN, step.adapter_rows)
        return y_TN

    def _attend(self, index: int, layer: Layer, qkv_TC: torch.Tensor, out_THD: torch.Tensor, step: Step) -> None:
        config = self.config
        keys, values = self.pools[index]
        cos_PD, sin_PD = self.weights.rotations[self.weights.layer_rotations[index]]
        kernels.rotate_and_store(
            qkv_TC,
            keys,
            values,
            step.positions,
            step.slots,
            cos_PD,
            sin_PD,
            num_heads=config.num_heads,
            norms=layer.qk_norms,
            eps=config.norm_eps,
        )
        attend(
            qkv_TC,
            keys,
            values,
            out_THD,
            step.plan,
            scale=config.attention_scale,
            window=config.layer_windows[index],
            flash=self.flash,
        )
