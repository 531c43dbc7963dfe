"""The decoder in plain PyTorch: the reference that the C step and the CUDA kernels are checked against.

One pass over the new tokens of every scheduled sequence, laid end to end. Source: Touvron et al. (arXiv 2302.13971),
section 2.2; Qwen 2 and 3 (arXiv 2407.10671, 2505.09388) and Gemma 3 (arXiv 2503.19786) differ where the config says so.
Linears see all rows as one matrix [T, K]; only attention goes sequence by sequence, after the keys and values of all
rows are written, so a row may read what another sequence wrote in the same step.
Legend: T tokens of the step, H query heads, N kv heads, D head size, K hidden size, V vocabulary, R rows with logits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from midwatch.engine.attention import PagedKV, Pages, lay_out, paged_attention
from midwatch.engine.batch import Batch, Forward
from midwatch.engine.checkpoint import Checkpoint
from midwatch.engine.lora import Adapter, LoraSlots, RowsOfSlot
from midwatch.engine.memory import available_cpu_bytes, kv_blocks, kv_bytes_per_token
from midwatch.engine.norm import RMSNorm
from midwatch.engine.quantize import Linear, dequantize, make_head, make_linear
from midwatch.engine.rope import rotate_, rotation_table
from midwatch.settings import EngineSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    window: int
    rope: tuple[float, tuple[float, ...]]
    attn_norm: RMSNorm
    qkv: Linear
    qkv_bias: torch.Tensor | None
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    o: Linear
    post_attn_norm: RMSNorm | None
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear
    post_mlp_norm: RMSNorm | None


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers share: slots to write, pages to read per window, angles per rotary table, rows per adapter."""

    slots_T: torch.Tensor
    pages: dict[int, list[Pages]]
    rotations: dict[tuple[float, tuple[float, ...]], torch.Tensor]
    adapted: list[RowsOfSlot]


class TorchBackend:
    """Weights in PyTorch's layouts and a paged pool of keys and values, on the CPU. See `batch.Backend`."""

    name = "torch"

    def __init__(
        self, checkpoint: Checkpoint, settings: EngineSettings, *, max_model_len: int, num_blocks: int | None = None
    ) -> None:
        self.config = config = checkpoint.config
        self.device = torch.device("cpu")
        self.block_size = settings.block_size
        self._dtype = dtype = DTYPES[settings.dtype]
        self._quantization = settings.quantization
        self._checkpoint = checkpoint
        head = embedding = checkpoint.tensor("embedding")
        self._embedding_VK = head_VK = dequantize(embedding, dtype)
        self._embedding_scale = torch.tensor(config.embedding_scale, dtype=dtype)  # Gemma was trained with it rounded
        if not config.tied_embeddings:
            head = checkpoint.tensor("head")
            head_VK = dequantize(head, dtype)
        self._head = make_head(head, dtype, settings.quantization, head_VK)
        self._final_norm = self._norm("final_norm")
        self._layers = [self._load_layer(index) for index in range(config.num_layers)]
        checkpoint.check_all_taken()
        del self._checkpoint
        self._rotations = {
            layer.rope: rotation_table(max_model_len, config.head_dim, *layer.rope) for layer in self._layers
        }
        linears = [linear for layer in self._layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        self.weight_bytes = sum(linear.bytes_per_decode for linear in (*linears, self._head))
        self._loras = LoraSlots(config, dtype)
        self.kv_bytes_per_token = kv_bytes_per_token(config, config.head_dim * dtype.itemsize)
        self.num_blocks = num_blocks or kv_blocks(
            self.kv_bytes_per_token, settings, free_bytes=available_cpu_bytes(), max_model_len=max_model_len
        )
        self._kv = PagedKV(config, dtype, self.num_blocks, self.block_size)

    def _load_layer(self, index: int) -> _Layer:
        config = self.config
        return _Layer(
            window=config.layer_windows[index],
            rope=(config.layer_rope_bases[index], () if config.layer_windows[index] else config.rope_factors),
            attn_norm=self._norm(f"layers.{index}.attn_norm"),
            qkv=self._linear(index, "q", "k", "v"),
            qkv_bias=self._qkv_bias(index) if config.qkv_bias else None,
            q_norm=self._norm(f"layers.{index}.q_norm") if config.qk_norm else None,
            k_norm=self._norm(f"layers.{index}.k_norm") if config.qk_norm else None,
            o=self._linear(index, "o"),
            post_attn_norm=self._norm(f"layers.{index}.post_attn_norm") if config.post_norms else None,
            mlp_norm=self._norm(f"layers.{index}.mlp_norm"),
            gate_up=self._linear(index, "gate", "up"),
            down=self._linear(index, "down"),
            post_mlp_norm=self._norm(f"layers.{index}.post_mlp_norm") if config.post_norms else None,
        )

    def _linear(self, index: int, *names: str) -> Linear:
        parts = [self._checkpoint.tensor(f"layers.{index}.{name}") for name in names]
        return make_linear(parts, self._dtype, self._quantization)

    def _norm(self, name: str) -> RMSNorm:
        return RMSNorm(dequantize(self._checkpoint.tensor(name), self._dtype)[0], self.config.norm_eps)

    def _qkv_bias(self, index: int) -> torch.Tensor:
        parts = [self._checkpoint.tensor(f"layers.{index}.{name}_bias") for name in "qkv"]
        return torch.cat([dequantize(part, self._dtype)[0] for part in parts])

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Forward:
        """Compute a step. See `batch.Backend`."""
        step = self._prepare(batch)
        x_TK = F.embedding(torch.from_numpy(batch.token_ids), self._embedding_VK)
        if self.config.embedding_scale != 1.0:
            x_TK = x_TK * self._embedding_scale
        for index, layer in enumerate(self._layers):
            x_TK = x_TK + self._attend(index, layer, layer.attn_norm(x_TK), step)
            x_TK = x_TK + self._feed_forward(index, layer, layer.mlp_norm(x_TK), step)
        if batch.want_hidden:
            hidden_TK = self._final_norm(x_TK)
            logits_RV = self._logits(hidden_TK, batch)
            return Forward(logits_RV=logits_RV, hidden_TK=hidden_TK.float())
        return Forward(logits_RV=self._logits(x_TK, batch, norm=self._final_norm))

    def _prepare(self, batch: Batch) -> _Step:
        config = self.config
        positions_T = torch.from_numpy(batch.positions)
        pages = {
            window: lay_out(batch, config, window, self.block_size) for window in sorted(set(config.layer_windows))
        }
        rotations = {rope: table[positions_T] for rope, table in self._rotations.items()}
        return _Step(torch.from_numpy(batch.slots).long(), pages, rotations, self._loras.rows(batch))

    def _attend(self, index: int, layer: _Layer, x_TK: torch.Tensor, step: _Step) -> torch.Tensor:
        config = self.config
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        qkv_TX = layer.qkv(x_TK)
        if layer.qkv_bias is not None:
            qkv_TX += layer.qkv_bias
        self._loras.add(qkv_TX, x_TK, index, ("q", "k", "v"), step.adapted)
        qkv_THD = qkv_TX.view(x_TK.shape[0], -1, config.head_dim)
        q_THD, k_TND, _ = torch.split(qkv_THD, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q_THD.copy_(layer.q_norm(q_THD))
            k_TND.copy_(layer.k_norm(k_TND))
        rotate_(qkv_THD[:, : num_heads + num_kv_heads], step.rotations[layer.rope])
        self._kv.write(index, step.slots_T, qkv_THD[:, num_heads:])
        q_TNGD = torch.unflatten(q_THD, 1, (num_kv_heads, -1))
        out_TNGD = paged_attention(q_TNGD, self._kv, index, step.pages[layer.window], scale=config.attention_scale)
        out_TX = out_TNGD.reshape(x_TK.shape[0], -1)
        out_TK = layer.o(out_TX)
        self._loras.add(out_TK, out_TX, index, ("o",), step.adapted)
        return out_TK if layer.post_attn_norm is None else layer.post_attn_norm(out_TK)

    def _feed_forward(self, index: int, layer: _Layer, x_TK: torch.Tensor, step: _Step) -> torch.Tensor:
        both_TX = layer.gate_up(x_TK)
        self._loras.add(both_TX, x_TK, index, ("gate", "up"), step.adapted)
        gate_TX, up_TX = both_TX.chunk(2, dim=-1)
        active_TX = F.silu(gate_TX) if self.config.activation == "silu" else F.gelu(gate_TX, approximate="tanh")
        inner_TX = active_TX * up_TX
        out_TK = layer.down(inner_TX)
        self._loras.add(out_TK, inner_TX, index, ("down",), step.adapted)
        return out_TK if layer.post_mlp_norm is None else layer.post_mlp_norm(out_TK)

    def _logits(self, x_TK: torch.Tensor, batch: Batch, norm: RMSNorm | None = None) -> torch.Tensor:
        if batch.logit_rows.shape[0] == 0:
            return torch.empty(0, self.config.vocab_size)
        if batch.logit_rows.shape[0] != x_TK.shape[0]:
            x_TK = x_TK[torch.from_numpy(batch.logit_rows)]
        return self._head(x_TK if norm is None else norm(x_TK)).float()

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) before the next `forward`."""
        self._kv.copy_blocks(pairs)

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        """Make a LoRA adapter ready under a slot. Raises `ModelError` if it is for another base."""
        self._loras.load(slot, adapter)

    def unload_adapter(self, slot: int) -> None:
        """Forget the adapter of a slot."""
        self._loras.unload(slot)

    def with_own_pool(self) -> TorchBackend:
        """The same weights beside a fresh pool of keys and values, for an engine of its own."""
        other = copy.copy(self)
        other._kv = PagedKV(self.config, self._dtype, self.num_blocks, self.block_size)
        return other

    def close(self) -> None:
        """Nothing to let go of: tensors are freed with the backend."""
