"""How many bytes a run needs, before it starts: arithmetic from a model's shape and a recipe, nothing is loaded.

What is always there: four-bit weights and their scales, what stays in 16 bits, adapters with optimizer. On top comes
the highest of three moments: a layer on the way forth, the loss, a layer on the way back. The same is done for plain
peft and transformers under bfloat16 autocast, which keeps norms, embedding and head in float32 and all logits several
times.

NF4 in blocks of 64 with double quantization takes 4 + 8 / 64 + 32 / (64 · 256) = 4.127 bits (Dettmers et al., arXiv
2305.14314, section 3). `model.get_memory_footprint()` counts the 4 and leaves the scales out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from midwatch.errors import TuningError
from midwatch.tuning.recipe import Recipe

HALF, FLOAT = 2, 4
"""Bytes of a bfloat16 and of a float32 number."""
CHUNK = {"cuda": 512, "cpu": 128}
"""Tokens whose logits exist at one time (`loss.CHUNK`)."""
LEAVING = 3
"""Layers whose kept numbers may be on their way to the host at one time (`offload.py`)."""
CUBLAS = 64 * 2**20
"""Workspace that cuBLAS and cuBLASLt keep on Hopper; older cards take less."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What of a model decides its memory."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a Hugging Face `config.json` of the Llama family. Raises `TuningError` where a field is missing."""
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                hidden=hidden,
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or hidden // heads),
                intermediate=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TuningError(
                f"The model's config.json has no usable {error}.", "A plan needs a config of the Llama family."
            ) from None

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """Read `config.json` in a model's folder. Raises `TuningError` if it is missing or damaged."""
        try:
            return cls.of(json.loads((folder / "config.json").read_text("utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise TuningError(f"{folder}/config.json cannot be read: {error}.", "Fetch the base again.") from None

    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear of a layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_weights(self) -> int:
        """Weights of all linears of all layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears().values())

    @property
    def other_weights(self) -> int:
        """Weights of embedding, head and norms."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of a plan."""

    name: str
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parts that are there at the peak; they add up to `total`."""

    parts: tuple[Part, ...]
    peak: str
    """The moment of the peak."""
    device: str

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(part.nbytes for part in self.parts)

    @property
    def resting(self) -> int:
        """Bytes between two steps: weights, scales, adapters and the optimizer's state."""
        return sum(part.nbytes for part in self.parts[:_RESTING])

    def rows(self) -> list[tuple[str, int]]:
        """(name, bytes) for a table, the total last."""
        return [*((part.name, part.nbytes) for part in self.parts), (f"Peak ({self.peak})", self.total)]


_RESTING = 7


def adapter_parameters(shape: ModelShape, recipe: Recipe) -> int:
    """Weights of all adapters: rank · (inputs + outputs) of each target in each layer."""
    linears = shape.linears()
    return shape.layers * recipe.lora.rank * sum(sum(linears[name]) for name in recipe.lora.targets)


def quant_state(shape: ModelShape) -> int:
    """Bytes of NF4's scales: one byte a block of 64, four a block of 256 of those, and each linear's tables."""
    weights, tables = shape.linear_weights, shape.layers * len(shape.linears()) * (256 + 16 + 1) * FLOAT
    return weights // 64 + -(-weights // (64 * 256)) * FLOAT + tables


def footprint(shape: ModelShape, recipe: Recipe) -> int:
    """What `model.get_memory_footprint()` says of the loaded base with its adapter: all but the scales."""
    linear = shape.linear_weights // 2 if recipe.four_bit else shape.linear_weights * HALF
    return linear + shape.other_weights * HALF + adapter_parameters(shape, recipe) * FLOAT


def _resting(shape: ModelShape, recipe: Recipe, device: str, *, other_bytes: int, copies: bool) -> list[Part]:
    adapters, rank = adapter_parameters(shape, recipe), recipe.lora.rank
    linears, targets = shape.linears(), set(recipe.lora.targets)
    copied = 0
    for group in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        ranks = rank * len(targets.intersection(group))
        copied += ranks * (linears[group[0]][0] + sum(linears[name][1] for name in group))
    four_bit = recipe.four_bit
    return [
        Part(
            name="Linears in NF4" if four_bit else "Linears in bfloat16",
            nbytes=shape.linear_weights // 2 if four_bit else shape.linear_weights * HALF,
        ),
        Part(name="Their scales (quant state)", nbytes=quant_state(shape) if four_bit else 0),
        Part(name="Embedding, head and norms", nbytes=shape.other_weights * other_bytes),
        Part(name="Adapters in float32", nbytes=adapters * FLOAT),
        Part(name="Adapters' copies in bfloat16", nbytes=shape.layers * copied * HALF if copies else 0),
        Part(name="Optimizer (two moments in float32)", nbytes=2 * adapters * FLOAT),
        Part(name="Workspace of the device's libraries", nbytes=CUBLAS if device == "cuda" else 0),
    ]


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Numbers of one layer, for T tokens."""

    hidden: int
    qkv: int
    around: int
    """Input, queries, keys and values, the attention's result, and the stream behind it."""
    gated: int
    """Gate and up side by side."""
    gate_up_weight: int
    down_weight: int


def _sizes(shape: ModelShape, recipe: Recipe) -> _Sizes:
    tokens = recipe.training.rows * recipe.training.row_tokens
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    widened = shape.hidden * shape.intermediate if recipe.four_bit else 0
    return _Sizes(
        hidden=tokens * shape.hidden,
        qkv=tokens * (queries + 2 * keys),
        around=tokens * (2 * shape.hidden + 2 * queries + 2 * keys),
        gated=tokens * 2 * shape.intermediate,
        gate_up_weight=2 * widened,
        down_weight=widened,
    )


def plan(shape: ModelShape, recipe: Recipe, device: Literal["cpu", "cuda"], *, counted_share: float = 1.0) -> Plan:
    """What our path needs on `device`. `counted_share` of the tokens go through the loss.

    With gradient checkpointing the last layer keeps everything; the others keep their input (CPU) or nothing but small
    parts (CUDA, where host memory keeps what surrounds the attention). Without, all layers keep everything.
    """
    size, tokens = _sizes(shape, recipe), recipe.training.rows * recipe.training.row_tokens
    ranks = recipe.lora.rank * 7
    whole = size.around + size.gated + tokens * ranks
    small = tokens * ranks * HALF + tokens * shape.heads * FLOAT
    on_host = device == "cuda" and recipe.training.gradient_checkpointing
    others = shape.layers - 1
    if not recipe.training.gradient_checkpointing:
        kept = shape.layers * whole * HALF
    else:
        kept = whole * HALF + others * (small if on_host else size.hidden * HALF)
    forth = max(size.hidden + size.gated + size.gate_up_weight, size.gated + size.gated // 2 + size.down_weight)
    moving = LEAVING * size.around if on_host else size.around
    # The last layer's own share of `kept` is not there yet while the others go forth, nor while they go back.
    before_last = kept - whole * HALF
    back = size.around + 2 * size.hidden + size.gated + size.gate_up_weight + size.gated + size.down_weight
    back += size.around if on_host else 0
    chunk = min(CHUNK[device], tokens) * shape.vocabulary * (HALF if device == "cuda" else 2 * HALF + FLOAT)
    counted = int(size.hidden * counted_share)
    loss = size.hidden * HALF + counted * (3 * HALF + 2 * FLOAT) + chunk + (size.around * HALF if on_host else 0)
    gradients = adapter_parameters(shape, recipe) * FLOAT
    moments = {
        "a layer on the way forth": (0, before_last, (moving + forth) * HALF, 0),
        "the loss": (0, kept, loss - chunk, chunk),
        "a layer on the way back": (gradients, before_last, back * HALF, 0),
    }
    peak = max(moments, key=lambda name: sum(moments[name]))
    return _planned(_resting(shape, recipe, device, other_bytes=HALF, copies=True), moments[peak], peak, device)


def plain_plan(shape: ModelShape, recipe: Recipe, device: Literal["cpu", "cuda"]) -> Plan:
    """What `prepare_model_for_kbit_training` with its defaults and transformers' own loss need under autocast.

    Checkpoints and embedding are float32; at the loss's gradient the logits exist in bfloat16, as their log-softmax,
    and as gradients in float32 and bfloat16, beside the head's copy in bfloat16.
    """
    size, tokens = _sizes(shape, recipe), recipe.training.rows * recipe.training.row_tokens
    logits = tokens * shape.vocabulary * (2 * HALF + 2 * FLOAT)
    head = shape.vocabulary * shape.hidden * HALF
    moment = (0, shape.layers * size.hidden * FLOAT, head, logits)
    resting = _resting(shape, recipe, device, other_bytes=FLOAT, copies=False)
    return _planned(resting, moment, "the loss on the way back", device)


def _planned(resting: list[Part], moment: tuple[int, int, int, int], peak: str, device: str) -> Plan:
    names = ("Gradients in float32", "Kept for the way back", "Working memory", "Logits")
    parts = [Part(name=name, nbytes=nbytes) for name, nbytes in zip(names, moment, strict=True)]
    assert len(resting) == _RESTING
    return Plan(parts=(*resting, *parts), peak=peak, device=device)


def host_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """Pinned host memory that CUDA's checkpoints take: what surrounds the attention of all layers but the last."""
    return _sizes(shape, recipe).around * HALF * (shape.layers - 1) if recipe.training.gradient_checkpointing else 0


def free_bytes(device: Literal["cpu", "cuda"]) -> int:
    """Bytes that a new process could take on the device now."""
    if device == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free)
    import psutil

    return int(psutil.virtual_memory().available)


def check_room(planned: Plan, free: int) -> None:
    """Raise `TuningError` if the plan does not fit in `free` bytes."""
    if planned.total <= free:
        return
    raise TuningError(
        f"This run needs {planned.total / GIB:.2f} GiB at its peak ({planned.peak}), but {planned.device} has "
        f"{free / GIB:.2f} GiB free.",
        "Take fewer training.rows or training.row_tokens, set training.gradient_checkpointing, or free memory.",
    )
