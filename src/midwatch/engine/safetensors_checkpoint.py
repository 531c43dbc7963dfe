"""A folder in Hugging Face's layout as a `Checkpoint`: `config.json` beside `*.safetensors`, in one file or in shards.

The safetensors library checks headers and bounds; `config.json` is checked here, value by value. Gemma's norms hold w
where the engine multiplies by 1 + w, so the one is added on reading. Conventions are those of transformers 5 (and the
older spelling of rotary positions that most folders still have).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from midwatch.errors import ModelError

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
}
HEAD_DIMS = {"qwen3": 128, "gemma3": 256}  # what transformers assumes where config.json is silent
MAX_JSON_BYTES = 1 << 24
MAX_SHARDS = 1 << 10
INDEX = "model.safetensors.index.json"

# Settings that change what a model computes, in ways that the engine does not.
_UNSUPPORTED = (
    "attention_bias",
    "mlp_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "quantization_config",
)
TENSOR_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_GEMMA_NAMES = {
    **TENSOR_NAMES,
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}


class SafetensorsCheckpoint:
    """An open folder of safetensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _read_config(path / "config.json")
        self._gemma = self.config.architecture == "gemma3"
        self._names = _GEMMA_NAMES if self._gemma else TENSOR_NAMES
        self._files = open_files(path)
        self._left = {name for name in self._files if not name.endswith("rotary_emb.inv_freq")}
        if self.config.tied_embeddings:
            self._left.discard(TENSOR_NAMES["head"])

    def tensor(self, name: str) -> BlockTensor:
        """The tensor of that name. Raises `ModelError` if it is missing or has another shape than the config asks."""
        layer, _, kind = name.rpartition(".")
        theirs = (f"model.{layer}." if layer else "") + self._names[kind]
        rows, columns = tensor_shape(self.config, name)
        file = self._files.get(theirs)
        if file is None:
            raise ModelError(f"{self.path} holds no tensor {theirs}.", "The folder is incomplete; fetch it again.")
        values = read_tensor(file, theirs, (rows, columns) if rows > 1 else (columns,), self.path)
        self._left.discard(theirs)
        if self._gemma and kind.endswith("_norm"):
            values = values.float() + 1
        blocks = values.contiguous().view(torch.uint8).view(rows, -1)
        return BlockTensor(name=name, ggml_type=_TYPES[values.dtype], rows=rows, columns=columns, blocks=blocks)

    def check_all_taken(self) -> None:
        """Raise `ModelError` if the files hold tensors that nobody asked for."""
        if self._left:
            raise ModelError(
                f"{self.path} holds {len(self._left)} tensors that the engine does not use, such as "
                f"{min(self._left)!r}.",
                "Its architecture differs from those that the engine runs; choose another model.",
            )


_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def open_safetensors(path: Path) -> Any:
    """An open safetensors file. Raises `ModelError` if it is missing, cut or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"Cannot read {path} as safetensors: {error}.", "Fetch it again.") from None


def read_tensor(file: Any, name: str, shape: tuple[int, ...], path: Path) -> torch.Tensor:
    """One tensor of F32, F16 or BF16, its shape checked before a byte of it is read. Raises `ModelError`."""
    from safetensors import SafetensorError

    try:
        header = file.get_slice(name)
        found, dtype = tuple(header.get_shape()), header.get_dtype()
        if found != shape:
            raise ModelError(f"{path}: tensor {name} has shape {found}; its config asks for {shape}.")
        if dtype not in _TYPES.values():
            raise ModelError(f"{path}: tensor {name} is of type {dtype}; F32, F16 and BF16 are read.")
        values: torch.Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{path}: tensor {name} cannot be read: {error}.", "Fetch the file again.") from None
    return values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a sane size. Raises `ModelError` if it is anything else."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{path} has {size:,} bytes; {MAX_JSON_BYTES:,} are allowed.")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.", "Give a model's folder, or a GGUF file.") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {str(error)[:200]}.", "Fetch it again.") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object.", "Fetch it again.")
    return found


def open_files(path: Path) -> dict[str, Any]:
    """The open file of every tensor of a folder, by name. Raises `ModelError` for what is missing or damaged."""
    if (path / INDEX).is_file():
        names = read_json(path / INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ModelError(f"{path / INDEX} holds no weight_map of file names.", "Fetch it again.")
        shards = sorted(set(names.values()))
        if len(shards) > MAX_SHARDS or any(Path(shard).name != shard for shard in shards):
            raise ModelError(f"{path / INDEX} names files outside its folder, or too many.", "Fetch it again.")
    else:
        shards = [file.name for file in sorted(path.glob("*.safetensors"))]
        if "model.safetensors" in shards:
            shards = ["model.safetensors"]
        if len(shards) != 1:
            raise ModelError(f"{path} holds {len(shards)} safetensors files and no {INDEX}.", "Fetch it again.")
    files: dict[str, Any] = {}
    for shard in shards:
        file = open_safetensors(path / shard)
        files.update(dict.fromkeys(file.keys(), file))
    return files


def _read_config(path: Path) -> ModelConfig:
    fields = Fields(path, read_json(path))
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        known = ", ".join(FAMILIES)
        raise ModelError(f"{path} names the architecture {str(name)[:80]!r}; the engine runs {known}.")
    gemma = family == "gemma3"
    for key in _UNSUPPORTED:
        if fields.get(key):
            raise ModelError(f"{path} sets {key}, which the engine does not run.")
    act_key = "hidden_activation" if gemma else "hidden_act"
    activation = fields.get(act_key) or ("gelu_pytorch_tanh" if gemma else "silu")
    if activation != ("gelu_pytorch_tanh" if gemma else "silu"):
        raise ModelError(f"{path} sets {act_key} to {str(activation)[:40]!r}, which the engine does not run.")
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    head_dim = fields.whole("head_dim", HEAD_DIMS.get(family, hidden // heads or None), most=MAX_HEAD_DIM)
    windows = _windows(fields, family)
    base, factors = _rope(fields, family, "full_attention", head_dim)
    local_base, local_factors = _rope(fields, family, "sliding_attention", head_dim)
    if any(windows) and local_factors:
        raise ModelError(f"{path} scales rotary positions of layers with a window, which the engine does not run.")
    config = ModelConfig(
        architecture=family,
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size"),
        num_layers=len(windows),
        num_heads=heads,
        num_kv_heads=fields.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        vocab_size=fields.whole("vocab_size"),
        context_length=fields.whole("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied_embeddings=fields.get("tie_word_embeddings") in ((True, None) if gemma else (True,)),
        layer_rope_bases=tuple(local_base if window else base for window in windows),
        layer_windows=windows,
        rope_factors=factors,
        attention_scale=1 / math.sqrt(fields.number("query_pre_attn_scalar", 256) if gemma else head_dim),
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        activation="gelu_tanh" if gemma else "silu",
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=gemma,
    )
    return check_config(config, path)


def _windows(fields: Fields, family: str) -> tuple[int, ...]:
    """Per layer, how many tokens it sees; 0 is all."""
    num_layers = fields.whole("num_hidden_layers", most=MAX_LAYERS)
    gemma = family == "gemma3"
    if not gemma and not fields.get("use_sliding_window"):
        return (0,) * num_layers
    window = fields.whole("sliding_window", 4096)
    kinds = fields.get("layer_types")
    if kinds is None and gemma:
        every = fields.whole("sliding_window_pattern", 6)
        return tuple(window if (index + 1) % every else 0 for index in range(num_layers))
    if kinds is None:
        first = fields.whole("max_window_layers", 28)
        return tuple(window if index >= first else 0 for index in range(num_layers))
    sizes = {"full_attention": 0, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not all(str(kind) in sizes for kind in kinds):
        raise ModelError(f"{fields.path}: layer_types must name {' or '.join(sizes)} for {num_layers} layers.")
    return tuple(sizes[str(kind)] for kind in kinds)


def _rope(fields: Fields, family: str, layer_type: str, head_dim: int) -> tuple[float, tuple[float, ...]]:
    """Base of the rotary angles, and divisors of their frequencies, for one type of layer."""
    gemma = family == "gemma3"
    found = fields.get("rope_parameters")
    if found is None:  # as transformers 4 wrote it
        found = {"rope_theta": fields.get("rope_theta"), **_dict(fields, fields.get("rope_scaling") or {})}
        if gemma and layer_type == "sliding_attention":
            found = {"rope_theta": fields.get("rope_local_base_freq")}
    elif gemma:
        found = _dict(fields, found).get(layer_type)
    rope = Fields(fields.path, _dict(fields, found), "")
    default = 1_000_000.0 if gemma and layer_type == "full_attention" else 10_000.0
    base = rope.number("rope_theta", default)
    if rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"{fields.path} rotates only a part of each head, which the engine does not run.")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return base, ()
    if kind == "linear":
        return base, (rope.number("factor"),) * (head_dim // 2)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if not low < high:
            raise ModelError(f"{fields.path}: low_freq_factor must be below high_freq_factor.")
        factor, context = rope.number("factor"), rope.number("original_max_position_embeddings")
        return base, llama3_factors(base, head_dim, factor=factor, low=low, high=high, context=context)
    raise ModelError(
        f"{fields.path} scales rotary positions by {str(kind)[:40]!r}; the engine runs default, linear and llama3."
    )


def llama3_factors(
    base: float, head_dim: int, *, factor: float, low: float, high: float, context: float
) -> tuple[float, ...]:
    """Llama 3.1's divisors: none for waves that fit the original context often, `factor` for those that do not fit it.

    In between, the frequency is a mix of both. Source: transformers, `_compute_llama3_parameters`.
    """
    divisors = []
    for index in range(0, head_dim, 2):
        turns = context * base ** (-index / head_dim) / (2 * math.pi)  # of this pair, over the original context
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return tuple(divisors)


def _dict(fields: Fields, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(f"{fields.path}: its rotary settings are {str(value)[:40]}; an object is needed.")
    return value
