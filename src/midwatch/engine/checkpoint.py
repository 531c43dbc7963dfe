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

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from midwatch.errors import ModelError

NORMS = ("final_norm", "attn_norm", "mlp_norm", "post_attn_norm", "post_mlp_norm")
MAX_LAYERS = 1 << 10
MAX_HEADS = 1 << 10
MAX_HEAD_DIM = 1 << 10
MAX_DIMENSION = (1 << 24) - 1
MAX_NUMBER = 1e30
_DAMAGED = "The file is damaged or of another kind; choose another."


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


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file, or a folder that holds `config.json` and `*.safetensors`.

    Only headers are read. Raises `ModelError` for what is missing, damaged, or of a kind the engine does not run.
    """
    if path.is_dir():
        from midwatch.engine.safetensors_checkpoint import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    from midwatch.engine.gguf_checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)


def tensor_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """Rows and columns that the config asks of a tensor; a vector has one row. `KeyError` for a name of none."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes = {
        "embedding": (config.vocab_size, hidden),
        "head": (config.vocab_size, hidden),
        "q": (q_rows, hidden),
        "k": (kv_rows, hidden),
        "v": (kv_rows, hidden),
        "o": (hidden, q_rows),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
        "q_bias": (1, q_rows),
        "k_bias": (1, kv_rows),
        "v_bias": (1, kv_rows),
        "q_norm": (1, head_dim),
        "k_norm": (1, head_dim),
    }
    shapes.update(dict.fromkeys(NORMS, (1, hidden)))
    return shapes[name.rpartition(".")[2]]


@dataclass(frozen=True, slots=True)
class Fields:
    """What a file says of its model, each value checked as it is read. `prefix` stands before every key."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def get(self, key: str) -> Any:
        """The value as it is, or None."""
        return self.values.get(self.prefix + key)

    def whole(self, key: str, default: int | None = None, *, most: int = MAX_DIMENSION) -> int:
        """A positive whole number. Raises `ModelError` if it is anything else, or missing without a default."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise ModelError(
                f"{self.path}: {self.prefix}{key} is {_short(value)}; a whole number from 1 to {most} is needed.",
                _DAMAGED,
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number. Raises `ModelError` as `whole` does."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_NUMBER:
            raise ModelError(
                f"{self.path}: {self.prefix}{key} is {_short(value)}; a positive number is needed.", _DAMAGED
            )
        return float(value)


def _short(value: object) -> str:
    return str(value)[:40]


def check_config(config: ModelConfig, path: Path) -> ModelConfig:
    """The config, if its numbers fit together and are no larger than any model's.

    Raises `ModelError` otherwise, before anything is allocated by them.
    """
    limits = {
        "layers": (config.num_layers, MAX_LAYERS),
        "context length": (config.context_length, MAX_DIMENSION),
        "hidden size": (config.hidden_size, MAX_DIMENSION),
        "intermediate size": (config.intermediate_size, MAX_DIMENSION),
        "vocabulary": (config.vocab_size, MAX_DIMENSION),
        "heads": (config.num_heads, MAX_HEADS),
        "kv heads": (config.num_kv_heads, MAX_HEADS),
        "head size": (config.head_dim, MAX_HEAD_DIM),
    }
    for what, (value, limit) in limits.items():
        if not 0 < value <= limit:
            raise ModelError(f"{path}: its {what} is {value}; 1 to {limit} is allowed.", _DAMAGED)
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        shape = f"{config.num_heads} heads of size {config.head_dim} over {config.num_kv_heads} kv heads"
        raise ModelError(f"{path}: {shape} do not divide.", _DAMAGED)
    numbers = (*config.layer_rope_bases, *config.rope_factors, config.attention_scale, config.embedding_scale)
    if not all(0 < number < math.inf for number in (*numbers, config.norm_eps)):
        raise ModelError(f"{path}: a rotary base, a scale or an epsilon is no positive number.", _DAMAGED)
    if len(config.rope_factors) not in (0, config.head_dim // 2):
        raise ModelError(f"{path}: {len(config.rope_factors)} rotary factors for heads of {config.head_dim}.", _DAMAGED)
    return config
