"""LoRA adapters written as peft writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from midwatch.engine.checkpoint import ModelConfig, tensor_shape

MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def write_adapter(
    path: Path,
    config: ModelConfig,
    *,
    linears: Sequence[str] = tuple(MODULES),
    rank: int = 4,
    alpha: float = 8,
    seed: int = 0,
    ranks: dict[str, int] | None = None,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """Write a random adapter and return its tensors by name. `ranks`: other ranks for some linears."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_layers):
        for linear in linears:
            rows, columns = tensor_shape(config, linear)
            width = (ranks or {}).get(linear, rank)
            prefix = f"base_model.model.model.layers.{layer}.{MODULES[linear]}.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(width, columns, generator=random) * 0.2
            tensors[f"{prefix}B.weight"] = torch.randn(rows, width, generator=random) * 0.2
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": [MODULES[linear].partition(".")[2] for linear in linears],
        "rank_pattern": {MODULES[linear].partition(".")[2]: width for linear, width in (ranks or {}).items()},
        **settings,
    }
    (path / "adapter_config.json").write_text(json.dumps(written))
    return tensors
