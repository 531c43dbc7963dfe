"""Weights on the device: from a checkpoint, or random ones made in place for measurements.

Linears that read the same input are fused (q, k, v; gate, up). Each tensor is turned into numbers on the CPU and leaves
it at once, so that a model larger than the CPU's memory still loads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from midwatch.engine.checkpoint import Checkpoint, ModelConfig
from midwatch.engine.cuda.decoder import Layer, Weights
from midwatch.engine.cuda.linear import Bits, Linear, make_linear
from midwatch.engine.quantize import dequantize

Fetch = Callable[[str, tuple[int, ...]], torch.Tensor]
"""A tensor by its canonical name and shape, on the device: matrices in the compute type, vectors in float32."""


def from_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Fetch:
    """Read tensors from a checkpoint."""

    def fetch(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        kind = torch.float32 if len(shape) == 1 else dtype
        return dequantize(checkpoint.tensor(name), kind).view(shape).to(device)

    return fetch


def random_weights(dtype: torch.dtype, device: torch.device, seed: int) -> Fetch:
    """Make tensors up: normal numbers of deviation 0.02 (norms are 1), drawn on the device."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def fetch(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device) if "norm" in name else torch.zeros(shape, device=device)
        tensor = torch.empty(shape, dtype=dtype, device=device)
        return tensor.normal_(0.0, 0.02, generator=generator)

    return fetch


def build(
    config: ModelConfig, fetch: Fetch, *, dtype: torch.dtype, bits: Bits, device: torch.device, max_positions: int
) -> Weights:
    """All weights in the form that the decoder multiplies; linears of the layers in `bits`, the rest in `dtype`."""
    embedding_VK = fetch("embedding", (config.vocab_size, config.hidden_size))
    head_VK = embedding_VK if config.tied_embeddings else fetch("head", (config.vocab_size, config.hidden_size))
    layers = tuple(_layer(config, index, fetch, dtype, bits) for index in range(config.num_layers))
    kinds: dict[tuple[float, tuple[float, ...]], int] = {}
    chosen = []
    for base, window in zip(config.layer_rope_bases, config.layer_windows, strict=True):
        kind = (base, () if window else config.rope_factors)
        chosen.append(kinds.setdefault(kind, len(kinds)))
    return Weights(
        embedding_VK=embedding_VK,
        layers=layers,
        final_norm_K=fetch("final_norm", (config.hidden_size,)),
        head=Linear(weight=head_VK, outputs=config.vocab_size, inputs=config.hidden_size),
        rotations=tuple(
            rotation_tables(max_positions, config.head_dim, base, factors, device) for base, factors in kinds
        ),
        layer_rotations=tuple(chosen),
    )


def rotation_tables(
    num_positions: int, head_dim: int, base: float, factors: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of p · base^(-2j/D) / factor_j, float32 [P, D / 2]; angles are computed in float64."""
    frequencies_D = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if factors:
        frequencies_D = frequencies_D / torch.tensor(factors, dtype=torch.float64)
    angles_PD = torch.outer(torch.arange(num_positions, dtype=torch.float64), frequencies_D)
    return angles_PD.cos().float().to(device), angles_PD.sin().float().to(device)


def _layer(config: ModelConfig, index: int, fetch: Fetch, dtype: torch.dtype, bits: Bits) -> Layer:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim

    def get(name: str, *shape: int) -> torch.Tensor:
        return fetch(f"layers.{index}.{name}", shape)

    bias = None
    if config.qkv_bias:
        bias = torch.cat([get("q_bias", queries), get("k_bias", keys), get("v_bias", keys)]).to(dtype)
    qkv = torch.cat([get("q", queries, hidden), get("k", keys, hidden), get("v", keys, hidden)])
    return Layer(
        attn_norm=get("attn_norm", hidden),
        qkv=make_linear(qkv, bits, bias),
        o=make_linear(get("o", hidden, queries), bits),
        mlp_norm=get("mlp_norm", hidden),
        gate_up=make_linear(torch.cat([get("gate", inner, hidden), get("up", inner, hidden)]), bits),
        down=make_linear(get("down", hidden, inner), bits),
        qk_norms=(get("q_norm", dim), get("k_norm", dim)) if config.qk_norm else None,
        post_attn_norm=get("post_attn_norm", hidden) if config.post_norms else None,
        post_mlp_norm=get("post_mlp_norm", hidden) if config.post_norms else None,
    )
