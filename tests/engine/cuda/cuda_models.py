"""Small random checkpoints in memory, a float64 reference of the decoder, and batches made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from midwatch.engine.batch import Batch
from midwatch.engine.checkpoint import BlockTensor, ModelConfig
from midwatch.engine.lora import Adapter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

LLAMA = ModelConfig(
    architecture="llama",
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=50,
    context_length=256,
    norm_eps=1e-5,
    tied_embeddings=False,
    layer_rope_bases=(10_000.0, 10_000.0),
    layer_windows=(0, 0),
    rope_factors=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
    attention_scale=0.25,
)
QWEN2 = replace(LLAMA, architecture="qwen2", qkv_bias=True, rope_factors=(), tied_embeddings=True)
QWEN3 = replace(LLAMA, architecture="qwen3", qk_norm=True, rope_factors=())
GEMMA3 = replace(
    LLAMA,
    architecture="gemma3",
    qk_norm=True,
    post_norms=True,
    embedding_scale=8.0,
    activation="gelu_tanh",
    tied_embeddings=True,
    layer_windows=(20, 0),
    layer_rope_bases=(10_000.0, 1_000_000.0),
)
FAMILIES = {config.architecture: config for config in (LLAMA, QWEN2, QWEN3, GEMMA3)}


class MemoryCheckpoint:
    """A checkpoint of random float32 numbers under the canonical names."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self.numbers: dict[str, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_heads * dim, config.num_kv_heads * dim

        def add(name: str, *shape: int) -> None:
            tensor = torch.randn(shape, generator=generator)
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.2
            self.numbers[name] = tensor * scale + (1.0 if "norm" in name else 0.0)

        add("embedding", config.vocab_size, hidden)
        if not config.tied_embeddings:
            add("head", config.vocab_size, hidden)
        add("final_norm", hidden)
        for index in range(config.num_layers):
            prefix = f"layers.{index}."
            for name, rows, columns in (
                ("q", queries, hidden),
                ("k", keys, hidden),
                ("v", keys, hidden),
                ("o", hidden, queries),
                ("gate", inner, hidden),
                ("up", inner, hidden),
                ("down", hidden, inner),
            ):
                add(prefix + name, rows, columns)
            names = [("attn_norm", hidden), ("mlp_norm", hidden)]
            if config.qkv_bias:
                names += [("q_bias", queries), ("k_bias", keys), ("v_bias", keys)]
            if config.qk_norm:
                names += [("q_norm", dim), ("k_norm", dim)]
            if config.post_norms:
                names += [("post_attn_norm", hidden), ("post_mlp_norm", hidden)]
            for name, size in names:
                add(prefix + name, size)
        self.taken: set[str] = set()

    def tensor(self, name: str) -> BlockTensor:
        numbers = self.numbers[name]
        self.taken.add(name)
        rows = numbers.view(-1, numbers.shape[-1])
        return BlockTensor(
            name=name, ggml_type="F32", rows=rows.shape[0], columns=rows.shape[1], blocks=rows.view(torch.uint8)
        )

    def check_all_taken(self) -> None:
        assert self.taken == set(self.numbers)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def reference_attention(
    q_THD: torch.Tensor, k_LND: torch.Tensor, v_LND: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Rows are the last T of L positions; float64 softmax over what each may see."""
    num_tokens, num_heads, _ = q_THD.shape
    length, num_kv_heads, _ = k_LND.shape
    k = k_LND.repeat_interleave(num_heads // num_kv_heads, 1)
    v = v_LND.repeat_interleave(num_heads // num_kv_heads, 1)
    scores = torch.einsum("thd,lhd->htl", q_THD, k) * scale
    position = torch.arange(length - num_tokens, length, device=q_THD.device)[:, None]
    key = torch.arange(length, device=q_THD.device)[None, :]
    hidden = key > position
    if window:
        hidden |= key <= position - window
    return torch.einsum("htl,lhd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def reference(
    checkpoint: MemoryCheckpoint, token_ids: Sequence[int], adapter: Adapter | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [T, V], hidden [T, K]) of one sequence, float64, without paging, chunks or fusion."""
    config = checkpoint.config
    w = {name: numbers.double() for name, numbers in checkpoint.numbers.items()}
    if adapter is not None:
        for (layer, name), pair in adapter.pairs.items():
            w[f"layers.{layer}.{name}"] = w[f"layers.{layer}.{name}"] + pair.b.double() @ pair.a.double()
    x = w["embedding"][list(token_ids)] * config.embedding_scale
    dim, num_tokens = config.head_dim, len(token_ids)
    for index in range(config.num_layers):
        p = {name.split(".", 2)[2]: t for name, t in w.items() if name.startswith(f"layers.{index}.")}
        h = norm(x, p["attn_norm"], config.norm_eps)
        q, k, v = (h @ p[name].T + p.get(f"{name}_bias", 0.0) for name in "qkv")
        q, k, v = (t.view(num_tokens, -1, dim) for t in (q, k, v))
        if config.qk_norm:
            q, k = norm(q, p["q_norm"], config.norm_eps), norm(k, p["k_norm"], config.norm_eps)
        frequency = config.layer_rope_bases[index] ** -(torch.arange(0, dim, 2).double() / dim)
        if config.rope_factors and not config.layer_windows[index]:
            frequency = frequency / torch.tensor(config.rope_factors).double()
        angle = torch.outer(torch.arange(num_tokens).double(), frequency)[:, None]
        turn = torch.polar(torch.ones_like(angle), angle)
        q, k = (_turn(t, turn) for t in (q, k))
        out = reference_attention(q, k, v, config.attention_scale, config.layer_windows[index])
        delta = out.reshape(num_tokens, -1) @ p["o"].T
        x = x + (norm(delta, p["post_attn_norm"], config.norm_eps) if config.post_norms else delta)
        h = norm(x, p["mlp_norm"], config.norm_eps)
        gate = h @ p["gate"].T
        act = F.silu(gate) if config.activation == "silu" else F.gelu(gate, approximate="tanh")
        delta = (act * (h @ p["up"].T)) @ p["down"].T
        x = x + (norm(delta, p["post_mlp_norm"], config.norm_eps) if config.post_norms else delta)
    hidden = norm(x, w["final_norm"], config.norm_eps)
    return hidden @ w["embedding" if config.tied_embeddings else "head"].T, hidden


def _turn(x_THD: torch.Tensor, turn_T1d: torch.Tensor) -> torch.Tensor:
    half = x_THD.shape[-1] // 2
    turned = torch.complex(x_THD[..., :half], x_THD[..., half:]) * turn_T1d
    return torch.cat([turned.real, turned.imag], -1)


def make_batch(pieces: Sequence[tuple[Sequence[int], int, Sequence[int]]], block_size: int, **options: Any) -> Batch:
    """A step from (all token ids so far, how many are computed, its blocks) per sequence; logits for every row."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts, lengths = [0], []
    for tokens, computed, blocks in pieces:
        for position in range(computed, len(tokens)):
            ids.append(tokens[position])
            positions.append(position)
            slots.append(blocks[position // block_size] * block_size + position % block_size)
        starts.append(len(ids))
        lengths.append(len(tokens))
    tables = np.zeros((len(pieces), max(len(blocks) for *_, blocks in pieces)), dtype=np.int32)
    for row, (*_, blocks) in enumerate(pieces):
        tables[row, : len(blocks)] = blocks
    options.setdefault("logit_rows", range(len(ids)))
    options.setdefault("adapters", [-1] * len(pieces))
    arrays = {
        "token_ids": ids,
        "positions": positions,
        "slots": slots,
        "starts": starts,
        "lengths": lengths,
        "logit_rows": options.pop("logit_rows"),
        "adapters": options.pop("adapters"),
    }
    return Batch(
        **{name: np.asarray(list(values), dtype=np.int32) for name, values in arrays.items()},
        block_tables=tables,
        **options,
    )


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """‖out − expected‖ / ‖expected‖; NaN counts as infinite."""
    value = float((out.double().cpu() - expected.double().cpu()).norm() / expected.double().cpu().norm())
    return value if value == value else float("inf")
