"""LoRA adapters: for some linears of some layers, y += (x Aᵀ) Bᵀ · scale.

Source: Hu et al. (arXiv 2106.09685), section 4.1. Files are read in peft's layout (`adapter_config.json` beside
`adapter_model.safetensors`).
Legend: T rows of the step, K input columns, N output rows, r rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from midwatch.engine.batch import Batch
from midwatch.engine.checkpoint import Fields, ModelConfig, tensor_shape
from midwatch.engine.safetensors_checkpoint import open_safetensors, read_json, read_tensor
from midwatch.errors import ModelError

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
MAX_RANK = 1 << 10
MAX_PATTERNS = 1 << 14

_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d{1,4})\."
    r"((?:self_attn\.(?:q|k|v|o)|mlp\.(?:gate|up|down))_proj)\.lora_(A|B)\.weight"
)
# Settings of peft that change what an adapter computes, in ways that the engine does not.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
)
_OTHER_BASE = "Load the adapter beside the model that it was trained on."
# The other ways to begin training (PiSSA, OLoRA, CorDA, LoftQ) change the base's weights too.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """`a` [rank, in] and `b` [out, rank], float32, `scale` already multiplied into `b`."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`pairs` by (layer, linear), linear one of `LINEARS`. Rows of q and k are in half-split order, as peft's are."""

    name: str
    rank: int
    pairs: dict[tuple[int, str], LoraPair]


@dataclass(frozen=True, slots=True)
class RowsOfSlot:
    """Rows of a step that use the adapter of one slot; `rows` is None where all of them do."""

    slot: int
    rows: torch.Tensor | None


class LoraSlots:
    """The adapters that a backend in PyTorch holds, and their share of a linear's output."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self._slots: dict[int, dict[tuple[int, str], LoraPair]] = {}

    def load(self, slot: int, adapter: Adapter) -> None:
        """Keep an adapter under a slot. Raises `ModelError` if it is for another base."""
        check_adapter(adapter, self._config)
        self._slots[slot] = {
            key: LoraPair(a=pair.a.to(self._dtype), b=pair.b.to(self._dtype)) for key, pair in adapter.pairs.items()
        }

    def unload(self, slot: int) -> None:
        """Forget the adapter of a slot; an empty slot is fine."""
        self._slots.pop(slot, None)

    def rows(self, batch: Batch) -> list[RowsOfSlot]:
        """Which rows of a step use which adapter."""
        used = [int(slot) for slot in np.unique(batch.adapters) if slot >= 0]
        if not used:
            return []
        slot_T = np.repeat(batch.adapters, np.diff(batch.starts))
        if len(used) == 1 and bool(np.all(slot_T == used[0])):
            return [RowsOfSlot(used[0], None)]
        return [RowsOfSlot(slot, torch.from_numpy(np.flatnonzero(slot_T == slot))) for slot in used]

    def add(
        self, y_TN: torch.Tensor, x_TK: torch.Tensor, layer: int, names: Sequence[str], rows: Sequence[RowsOfSlot]
    ) -> None:
        """Add what the adapters say to `y_TN`, whose columns are the outputs of `names` side by side."""
        for item in rows:
            pairs = self._slots[item.slot]
            chosen_TK = x_TK if item.rows is None else x_TK[item.rows]
            start = 0
            for name in names:
                end = start + tensor_shape(self._config, name)[0]
                pair = pairs.get((layer, name))
                if pair is not None:
                    delta_TN = chosen_TK @ pair.a.T @ pair.b.T
                    if item.rows is None:
                        y_TN[:, start:end] += delta_TN
                    else:
                        y_TN[:, start:end].index_add_(0, item.rows, delta_TN)
                start = end


def check_adapter(adapter: Adapter, config: ModelConfig) -> None:
    """Raise `ModelError` if a pair does not fit the base: another number of layers, or other widths."""
    for (layer, linear), pair in adapter.pairs.items():
        if linear not in LINEARS or not 0 <= layer < config.num_layers:
            raise ModelError(f"Adapter {adapter.name} changes {linear} of layer {layer}, which the base has not.")
        rows, columns = tensor_shape(config, linear)
        rank = pair.a.shape[0]
        if pair.a.shape != (rank, columns) or pair.b.shape != (rows, rank):
            raise ModelError(
                f"Adapter {adapter.name} is for another base: its {linear} of layer {layer} is "
                f"{tuple(pair.b.shape)} · {tuple(pair.a.shape)}, the base's is {(rows, columns)}.",
                _OTHER_BASE,
            )


def read_adapter(path: Path, config: ModelConfig, name: str) -> Adapter:
    """Read an adapter that peft has saved, for a base of this shape.

    Only pairs of A and B on attention's and the MLP's linears are read; ranks and shapes are checked before any number
    is. Raises `ModelError` for a folder that is incomplete or damaged, for an adapter of another kind (DoRA, biases,
    embeddings, whole modules), and for another base.
    """
    settings = _Settings(Fields(path / "adapter_config.json", read_json(path / "adapter_config.json")))
    source = path / "adapter_model.safetensors"
    if not source.is_file():
        raise ModelError(f"{path} holds no adapter_model.safetensors.", "Save the adapter as safetensors.")
    file = open_safetensors(source)
    names: dict[tuple[int, str], dict[str, str]] = {}
    for tensor_name in file.keys():  # noqa: SIM118 - it is no dict
        match = _TENSOR.fullmatch(tensor_name)
        if match is None:
            raise ModelError(
                f"{source} holds {tensor_name[:120]!r}; the engine runs LoRA pairs on {', '.join(LINEARS)} only.",
                "Train the adapter without embeddings, biases and modules_to_save.",
            )
        names.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor_name
    if not names:
        raise ModelError(f"{source} holds no LoRA pairs.", "Save the adapter again.")
    pairs: dict[tuple[int, str], LoraPair] = {}
    for (layer, module), halves in sorted(names.items()):
        linear = module.rpartition(".")[2].removesuffix("_proj")
        if len(halves) != 2:
            raise ModelError(f"{source} holds only one half of {module} in layer {layer}.", "Save the adapter again.")
        if layer >= config.num_layers:
            raise ModelError(f"Adapter {name} changes layer {layer}; the base has {config.num_layers}.", _OTHER_BASE)
        rows, columns = tensor_shape(config, linear)
        rank, scale = settings.rank_and_scale(f"model.layers.{layer}.{module}")
        try:
            a = read_tensor(file, halves["A"], (rank, columns), source).float()
            b = read_tensor(file, halves["B"], (rows, rank), source).float()
        except ModelError as error:
            raise ModelError(f"Adapter {name} does not fit: {error.what}", _OTHER_BASE) from None
        pairs[layer, linear] = LoraPair(a=a, b=b * scale)
    adapter = Adapter(name=name, rank=max(pair.a.shape[0] for pair in pairs.values()), pairs=pairs)
    check_adapter(adapter, config)
    return adapter


class _Settings:
    """`adapter_config.json`: the rank and the scale of every module. peft's `LoraConfig` says what the fields mean."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        if fields.get("peft_type") != "LORA":
            kind = str(fields.get("peft_type"))[:40]
            raise ModelError(f"{fields.path} is an adapter of type {kind!r}; the engine runs LORA.")
        for key in _UNSUPPORTED:
            if fields.get(key):
                raise ModelError(f"{fields.path} sets {key}, which the engine does not run.", "Train it without.")
        if fields.get("bias") not in (None, "none"):
            raise ModelError(f"{fields.path} trains biases, which the engine does not run.", 'Train with bias="none".')
        if fields.get("init_lora_weights") not in _PLAIN_STARTS:
            raise ModelError(
                f"{fields.path} began with init_lora_weights={str(fields.get('init_lora_weights'))[:40]!r}, which "
                "changes the base's weights.",
                "Convert it to plain LoRA (peft's path_initial_model_for_weight_conversion).",
            )
        self._ranks, self._alphas = self._patterns("rank_pattern"), self._patterns("alpha_pattern")

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """Rank, and alpha / rank (or alpha / sqrt(rank): rsLoRA, Kalajdzievski, arXiv 2312.03732)."""
        rank = self._ranks.whole(_matching(self._ranks.values, module), self._default("r"), most=MAX_RANK)
        alpha = self._alphas.number(_matching(self._alphas.values, module), self._fields.number("lora_alpha"))
        return rank, alpha / (math.sqrt(rank) if self._fields.get("use_rslora") else rank)

    def _default(self, key: str) -> int:
        return self._fields.whole(key, most=MAX_RANK)

    def _patterns(self, key: str) -> Fields:
        found = self._fields.get(key) or {}
        if not isinstance(found, dict) or len(found) > MAX_PATTERNS:
            raise ModelError(f"{self._fields.path}: {key} is not an object of names.", "Save the adapter again.")
        for pattern in found:
            if not re.fullmatch(r"\^?[\w.]{1,200}", pattern):
                raise ModelError(
                    f"{self._fields.path}: {key} names {pattern[:80]!r}; the engine reads plain module names there."
                )
        return Fields(self._fields.path, found)


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that names a module: its whole name after `^`, else the end of it, at a dot."""
    for pattern in patterns:
        if pattern == f"^{module}" or f".{module}".endswith(f".{pattern}"):
            return pattern
    return module
