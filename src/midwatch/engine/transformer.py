"""The Llama-family decoder: one pass over the new tokens of every scheduled sequence, laid end to end.

Source: Touvron et al. (arXiv 2302.13971), section 2.2. Linears see all tokens as one matrix [T, K]; only attention goes
sequence by sequence. Logits are computed for the rows that will be sampled and for no others.
Legend: T tokens of the step, H query heads, N kv heads, D head size, K hidden size, V vocabulary, R rows with logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from midwatch.engine.attention import causal_mask, fused_attention
from midwatch.engine.blocks import KVStore, KVViews
from midwatch.engine.norm import RMSNorm
from midwatch.engine.quantize import Linear, Quantization, dequantize, make_head, make_linear
from midwatch.engine.rope import rotate_, rotation_table
from midwatch.engine.weights import GGUF, ModelConfig


@dataclass(frozen=True, slots=True)
class Span:
    """The new tokens of one sequence: `token_ids`, of which the first stands at position `start`."""

    sequence_id: int
    start: int
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Segment:
    """A span's number of rows in the step, its buffers and its mask."""

    num_tokens: int
    kv: KVViews
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: RMSNorm
    qkv: Linear
    attention_out: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear


class Transformer:
    """The decoder's weights and its forward pass. Stateless between calls: keys and values live in the `KVStore`."""

    def __init__(
        self, gguf: GGUF, config: ModelConfig, *, dtype: torch.dtype, quantization: Quantization, max_positions: int
    ) -> None:
        self.config = config
        self.dtype = dtype
        self._rotations = rotation_table(max_positions, config.head_dim, config.rope_base)
        shape_VK = (config.vocab_size, config.hidden_size)
        self._embedding_VK = dequantize(gguf.tensor("token_embd.weight", shape_VK), dtype)
        head_VK = self._embedding_VK
        if not config.tied_embeddings:
            head_VK = dequantize(gguf.tensor("output.weight", shape_VK), dtype)
        self._head = make_head(head_VK, quantization)
        self._final_norm = self._norm(gguf, "output_norm.weight")
        self._layers = [self._load_layer(gguf, f"blk.{index}", quantization) for index in range(config.num_layers)]
        gguf.check_all_taken()

    def _load_layer(self, gguf: GGUF, prefix: str, quantization: Quantization) -> _Layer:
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def linear(*parts: tuple[str, int], columns: int = hidden) -> Linear:
            tensors = [gguf.tensor(f"{prefix}.{name}.weight", (rows, columns)) for name, rows in parts]
            return make_linear(tensors, self.dtype, quantization)

        return _Layer(
            attention_norm=self._norm(gguf, f"{prefix}.attn_norm.weight"),
            qkv=linear(("attn_q", q_rows), ("attn_k", kv_rows), ("attn_v", kv_rows)),
            attention_out=linear(("attn_output", hidden), columns=q_rows),
            mlp_norm=self._norm(gguf, f"{prefix}.ffn_norm.weight"),
            gate_up=linear(("ffn_gate", inner), ("ffn_up", inner)),
            down=linear(("ffn_down", hidden), columns=inner),
        )

    def _norm(self, gguf: GGUF, name: str) -> RMSNorm:
        weight_K = dequantize(gguf.tensor(name, (self.config.hidden_size,)), self.dtype)[0]
        return RMSNorm(weight_K, self.config.norm_eps)

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span], logit_rows: Sequence[int], kv: KVStore) -> torch.Tensor:
        """Compute all spans, whose places in `kv` must be reserved. Returns float32 logits [R, V].

        `logit_rows` are rows of the step (spans laid end to end); without any, no logits are computed.
        """
        token_ids = torch.tensor([token for span in spans for token in span.token_ids])
        segments, positions = self._lay_out(spans, kv)
        rotation_T1d = self._rotations[positions]
        x_TK = F.embedding(token_ids, self._embedding_VK)
        for index, layer in enumerate(self._layers):
            x_TK = x_TK + self._attend(index, layer, layer.attention_norm(x_TK), rotation_T1d, segments)
            gate_T, up_T = layer.gate_up(layer.mlp_norm(x_TK)).chunk(2, dim=-1)
            x_TK = x_TK + layer.down(F.silu(gate_T) * up_T)
        if not logit_rows:
            return torch.empty(0, self.config.vocab_size)
        if len(logit_rows) != x_TK.shape[0]:
            x_TK = x_TK[torch.tensor(logit_rows)]
        return self._head(self._final_norm(x_TK)).float()

    def _lay_out(self, spans: Sequence[Span], kv: KVStore) -> tuple[list[_Segment], torch.Tensor]:
        config = self.config
        segments: list[_Segment] = []
        positions: list[int] = []
        for span in spans:
            count = len(span.token_ids)
            end = span.start + count
            views = kv.views(span.sequence_id, span.start, end)
            mask = causal_mask(count, end, config.num_heads, config.num_kv_heads)
            segments.append(_Segment(count, views, mask))
            positions.extend(range(span.start, end))
        return segments, torch.tensor(positions)

    def _attend(
        self, index: int, layer: _Layer, x_TK: torch.Tensor, rotation_T1d: torch.Tensor, segments: list[_Segment]
    ) -> torch.Tensor:
        config = self.config
        qkv_THD = layer.qkv(x_TK).view(x_TK.shape[0], -1, config.head_dim)
        rotate_(qkv_THD[:, : config.num_heads + config.num_kv_heads], rotation_T1d)
        counts = [segment.num_tokens for segment in segments]
        q_TNGD = qkv_THD[:, : config.num_heads].view(x_TK.shape[0], config.num_kv_heads, -1, config.head_dim)
        kv_THD = qkv_THD[:, config.num_heads :]
        outs = []
        rows = zip(segments, torch.split(q_TNGD, counts), torch.split(kv_THD, counts), strict=True)
        for segment, q, new in rows:
            kv = segment.kv
            kv.new[index].copy_(new)
            outs.append(fused_attention(q, kv.keys[index], kv.values[index], segment.mask))
        out_TNGD = outs[0] if len(outs) == 1 else torch.cat(outs)
        return layer.attention_out(out_TNGD.reshape(x_TK.shape[0], -1))
