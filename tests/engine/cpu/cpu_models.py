"""Random decoders in memory, of any family and any block type, for tests of the C step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import torch

from midwatch.engine.checkpoint import BlockTensor, ModelConfig, tensor_shape
from midwatch.engine.cpu.backend import CpuBackend
from midwatch.engine.lora import LINEARS, Adapter, LoraPair
from midwatch.engine.transformer import TorchBackend
from midwatch.settings import EngineSettings

LLAMA = ModelConfig(
    architecture="llama",
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=83,
    context_length=4096,
    norm_eps=1e-5,
    tied_embeddings=True,
    layer_rope_bases=(10_000.0, 10_000.0),
    layer_windows=(0, 0),
    attention_scale=32**-0.5,
)
FAMILIES = {
    "llama": LLAMA,
    "untied": dataclasses.replace(LLAMA, tied_embeddings=False, vocab_size=96),
    "odd widths": dataclasses.replace(LLAMA, hidden_size=72, intermediate_size=100, head_dim=16),
    "wide heads": dataclasses.replace(LLAMA, head_dim=80, num_heads=2, num_kv_heads=2),
    "one kv head": dataclasses.replace(LLAMA, num_heads=14, num_kv_heads=1, head_dim=64),
    "llama 3.1": dataclasses.replace(LLAMA, rope_factors=tuple(1.0 + 0.5 * j for j in range(16))),
    "qwen2": dataclasses.replace(LLAMA, architecture="qwen2", qkv_bias=True),
    "qwen3": dataclasses.replace(LLAMA, architecture="qwen3", qk_norm=True, head_dim=64),
    "gemma3": dataclasses.replace(
        LLAMA,
        architecture="gemma3",
        num_layers=3,
        qk_norm=True,
        post_norms=True,
        activation="gelu_tanh",
        embedding_scale=8.0,
        layer_rope_bases=(10_000.0, 1_000_000.0, 10_000.0),
        layer_windows=(7, 0, 7),
    ),
}


class RandomCheckpoint:
    """Numbers from a seed; matrices as `kind`, or as `kinds` says by their last name; vectors in F32."""

    def __init__(self, config: ModelConfig, kind: str = "Q8_0", seed: int = 0, **kinds: str) -> None:
        self.config = config
        self._kind, self._kinds, self._seed = kind, kinds, seed
        self._made: dict[str, BlockTensor] = {}

    def tensor(self, name: str) -> BlockTensor:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> BlockTensor:
        rows, columns = tensor_shape(self.config, name)
        last = name.rpartition(".")[2]
        random = np.random.default_rng([self._seed, *name.encode()])
        kind = "F32" if rows == 1 else self._kinds.get(last, self._kind)
        values = random.normal(0, 1.0 if last in ("embedding", "head") else columns**-0.5, (rows, columns))
        if "norm" in last:
            values = 1 + 0.2 * values
        return blocks_of(name, kind, values.astype(np.float32), random)

    def check_all_taken(self) -> None:
        pass


def blocks_of(name: str, kind: str, values: np.ndarray, random: np.random.Generator) -> BlockTensor:
    """A tensor of that type; K-quants, which the library cannot write, get random blocks of a like size."""
    rows, columns = values.shape
    if kind in ("Q4_K", "Q6_K"):
        blocks = _random_super_blocks(kind, rows, columns, random)
    elif kind == "F32":
        blocks = values.view(np.uint8)
    elif kind == "BF16":
        blocks = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint8).numpy()
    else:
        padded = values
        if columns % 32:
            return blocks_of(name, "F32", values, random)
        blocks = gguf.quants.quantize(padded, gguf.GGMLQuantizationType[kind]).reshape(rows, -1)
    return BlockTensor(
        name=name, ggml_type=kind, rows=rows, columns=columns, blocks=torch.from_numpy(np.ascontiguousarray(blocks))
    )


def _random_super_blocks(kind: str, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    size = {"Q4_K": 144, "Q6_K": 210}[kind]
    blocks = random.integers(0, 256, (rows, columns // 256, size), dtype=np.uint8)

    def half(number: float) -> np.ndarray:
        return np.frombuffer(np.float16(number).tobytes(), dtype=np.uint8)

    scale = columns**-0.5
    if kind == "Q4_K":  # as much below zero as above: every minimum is its factor, at 7.5 times the scale
        blocks[..., 0:2], blocks[..., 2:4] = half(scale / 200), half(7.5 * scale / 200)
        blocks[..., 8:12] = blocks[..., 4:8]
        blocks[..., 12:16] = (blocks[..., 12:16] & 15) * 17
    else:
        blocks[..., 208:210] = half(scale / 1400)
    return blocks.reshape(rows, -1)


def random_adapter(config: ModelConfig, *, rank: int = 5, seed: int = 0, linears: tuple[str, ...] = LINEARS) -> Adapter:
    """An adapter that changes these linears of every layer by about as much as they are."""
    random = torch.Generator().manual_seed(seed)
    pairs = {}
    for layer in range(config.num_layers):
        for linear in linears:
            rows, columns = tensor_shape(config, linear)
            a = torch.randn(rank, columns, generator=random) * columns**-0.5
            pairs[layer, linear] = LoraPair(a=a, b=torch.randn(rows, rank, generator=random) * rank**-0.5)
    return Adapter(name=f"random{seed}", rank=rank, pairs=pairs)


class Make:
    """Makes backends over random models; the C step is compiled once per session."""

    def __init__(self, kernel_dir: Path) -> None:
        self.kernel_dir = kernel_dir

    def native(
        self,
        config: ModelConfig = LLAMA,
        checkpoint: RandomCheckpoint | None = None,
        *,
        max_model_len: int = 256,
        num_blocks: int | None = None,
        flags: tuple[str, ...] = (),
        **settings: object,
    ) -> CpuBackend:
        chosen = EngineSettings(**{"threads": 1, **settings})
        return CpuBackend(
            checkpoint or RandomCheckpoint(config),
            chosen,
            max_model_len=max_model_len,
            num_blocks=num_blocks or 4 * max_model_len // chosen.block_size + 4,
            kernel_dir=self.kernel_dir,
            compiler_flags=flags,
        )

    def reference(
        self, config: ModelConfig = LLAMA, checkpoint: RandomCheckpoint | None = None, *, max_model_len: int = 256
    ) -> TorchBackend:
        settings = EngineSettings(threads=1, dtype="float32", quantization="none", kernels="torch")
        source = checkpoint or RandomCheckpoint(config)
        return TorchBackend(source, settings, max_model_len=max_model_len, num_blocks=4 * max_model_len // 16 + 4)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|."""
    return float((ours - theirs).norm() / theirs.norm())


def text(count: int, config: ModelConfig = LLAMA, seed: int = 1) -> list[int]:
    """Random token ids."""
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
