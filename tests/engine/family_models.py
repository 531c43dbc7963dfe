"""Tiny random models of every family that the engine runs, made and saved by transformers, and the same as GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from midwatch.engine.gguf_checkpoint import TENSOR_NAMES as GGUF_NAMES
from midwatch.engine.safetensors_checkpoint import _GEMMA_NAMES, TENSOR_NAMES

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2_windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "rms_norm_eps": 1e-5}),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 32,
            "num_hidden_layers": 6,
            "num_key_value_heads": 1,
            "sliding_window": 7,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
            },
        },
    ),
}


def make_peer(name: str, **changes: Any) -> Any:
    """transformers' model of a family, every number of it random, float32. `changes`: of its config."""
    import transformers

    family, settings = FAMILIES[name]
    config_class = transformers.Gemma3TextConfig if family == "Gemma3" else getattr(transformers, f"{family}Config")
    config = config_class(**{**SHAPE, **settings, **changes})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.normal_(0, 0.3 if parameter_name.endswith("norm.weight") else 0.15)
                if parameter_name.endswith("norm.weight") and family != "Gemma3":
                    parameter.add_(1)
    return model.eval()


def write_family_gguf(
    name: str, model: Any, path: Path, *, more: Callable[[gguf.GGUFWriter], None] = lambda writer: None
) -> Path:
    """The same model as llama.cpp's converter would write it, float32. `more` may add metadata."""
    config, family = model.config, FAMILIES[name][0].lower()
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    more(writer)
    rope = config.rope_parameters
    if family == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
        factors = plain / model.model.rotary_emb.inv_freq.double().numpy()
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    theirs = {value: key for key, value in (_GEMMA_NAMES if family == "gemma3" else TENSOR_NAMES).items()}
    for full_name, value in model.state_dict().items():
        if full_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        parts = full_name.split(".")
        prefix = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        kind = theirs[".".join(parts[3:]) if prefix else full_name]
        values = value.numpy()
        if family == "llama" and kind in ("q", "k"):
            values = values.reshape(-1, 2, head_dim // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if family == "gemma3" and kind.endswith("norm"):
            values = values + 1
        writer.add_tensor(prefix + GGUF_NAMES[kind], np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
