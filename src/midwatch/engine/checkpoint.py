"""A model on disk, whatever its format: the shape of its decoder, and its tensors under one set of names.

A GGUF file and a folder of safetensors both become a `Checkpoint`. Names and conventions are the same for both, so no
backend knows where weights came from:

- `embedding` [V, K], `head` [V, K] (absent where embeddings are tied), `final_norm` [K];
- per layer, as `layers.{i}.`: `attn_norm`, `q`, `k`, `v` (rows = heads · head_dim), `o`, `mlp_norm`, `gate`, `up`,
  `down`; where the config says so `q_bias`, `k_bias`, `v_bias`, `q_norm`, `k_norm` [D], `post_attn_norm`,
  `post_mlp_norm`.
- Rows of `q` and `k` (and their biases) are in half-split order: dimension j of a head turns with dimension j + D / 2.
  GGUF files of Llama interleave the pairs; their rows are put back on reading (rows move whole, so blocks stay as they
  are).
- Norm weights multiply as they are: Gemma's "1 + w" is added on reading where the file does not hold it already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """A matrix (or vector, with one row) as the file holds it.

    `blocks` is uint8 of shape [rows, bytes per row]; `columns` counts weights in a row; `ggml_type` says how to read
    them (`F32`, `F16` and `BF16` for plain numbers).
    """

    name: str
    ggml_type: str
    rows: int
    columns: int
    blocks: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder of the Llama family (Llama, Qwen 2 and 3, Gemma 3).

    `layer_windows`: per layer, how many last tokens a row sees, itself included; 0 is all. `layer_rope_bases`: per
    layer, the base of its rotary angles. `rope_factors`: D / 2 divisors of the rotary frequencies of layers with full
    attention (Llama 3.1's scaling), empty for none. `attention_scale`: what q·k is multiplied by. `embedding_scale`:
    what embeddings are multiplied by. `post_norms`: norms after attention and MLP too, before the residual is added.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    tied_embeddings: bool
    layer_rope_bases: tuple[float, ...]
    layer_windows: tuple[int, ...]
    rope_factors: tuple[float, ...] = ()
    attention_scale: float
    embedding_scale: float = 1.0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False


class Checkpoint(Protocol):
    """An open model: its shape and its tensors."""

    config: ModelConfig

    def tensor(self, name: str) -> BlockTensor:
        """The tensor of that name. Raises `ModelError` if it is missing or has another shape than the config asks."""
        ...

    def check_all_taken(self) -> None:
        """Raise `ModelError` if the file holds tensors that nobody asked for: such a model computes something else."""
        ...
