"""A Hugging Face folder becomes a GGUF file that llama.cpp and the engine load; an adapter becomes a GGUF adapter.

The way back of `convert.py`: Llama's q and k rows are interleaved again, Llama 3.1's frequencies become a tensor of
divisors, and the tokenizer its own metadata. In the quantized kinds the embedding and the head stay Q8_0: they decide
every token, llama.cpp itself gives them more bits than the rest (Q6_K, or Q8_0 where rows are no multiple of 256), and
Q6_K is not written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from midwatch.engine.checkpoint import ModelConfig, open_checkpoint, tensor_shape
from midwatch.engine.download import Tools
from midwatch.engine.gguf_checkpoint import TENSOR_NAMES
from midwatch.engine.lora import read_adapter
from midwatch.engine.quantize import dequantize
from midwatch.engine.safetensors_checkpoint import SafetensorsCheckpoint
from midwatch.errors import TuningError
from midwatch.tuning import identity
from midwatch.tuning.convert import CONVERTED, is_vector, tensor_names
from midwatch.tuning.gguf_tokenizer import GGUFTokenizer, read_tokenizer
from midwatch.tuning.gguf_writer import PlannedTensor, write_file
from midwatch.tuning.model_folder import provenance_of

if TYPE_CHECKING:
    import torch

Kind = Literal["Q8_0", "Q4_1", "F16", "BF16", "F32"]
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
_QUANTIZATION_VERSION = 2


def export(folder: Path, target: Path, *, kind: Kind = "Q8_0", tools: Tools | None = None) -> Path:
    """Write the model in `folder` as the GGUF file `target`, whole or not at all; returns `target`.

    Q4_1 costs a tuned model far more than Q8_0: what an adapter adds is often less than half a step of 16 a block. Most
    is lost where the 16-bit numbers of a Q4_1 file were merged into, whose own steps are found again
    (`results/tuning/merge.json`).

    Raises `TuningError` for an architecture or a tokenizer that is not exported, a `kind` that is none, or if `target`
    is there already; `ModelError` for a folder that is incomplete or damaged; `DownloadError` for a full disk.
    """
    if kind not in get_args(Kind):
        raise TuningError(f"{kind!r} is no kind of GGUF file.", f"Choose {', '.join(get_args(Kind))}.")
    if not folder.is_dir():
        raise TuningError(f"{folder} is not a folder.", "Give a folder of safetensors; a GGUF file needs no export.")
    checkpoint = SafetensorsCheckpoint(folder)
    config = checkpoint.config
    if config.architecture not in CONVERTED or any(config.layer_windows):
        raise TuningError(
            f"{folder} is a model of architecture {config.architecture}"
            f"{' with windows' if any(config.layer_windows) else ''}; {', '.join(CONVERTED)} are exported.",
            "Use llama.cpp's convert_hf_to_gguf.py for this one.",
        )
    metadata = {
        **_general(folder),
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **_shape(config),
        **_tokenizer(read_tokenizer(folder)),
    }
    tensors = [*_tensors(checkpoint, kind), *_rope(config)]
    return write_file(target, config.architecture, metadata, tensors, tools or Tools())


def export_adapter(adapter_dir: Path, base_dir: Path, target: Path, *, tools: Tools | None = None) -> Path:
    """Write a LoRA adapter as a GGUF file for llama.cpp's `--lora`, beside a GGUF of its base; returns `target`.

    The scale is in B already, since ranks may differ from linear to linear; alpha 0 tells llama.cpp to leave it.
    """
    identity.check(adapter_dir, base_dir)
    config = open_checkpoint(base_dir).config
    adapter = read_adapter(adapter_dir, config, adapter_dir.name)
    metadata: dict[str, Any] = {
        "general.type": "adapter",
        "general.name": adapter_dir.resolve().name,
        "general.file_type": _FILE_TYPES["F32"],
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
    tensors = []
    for (layer, linear), pair in adapter.pairs.items():
        name = f"blk.{layer}.{TENSOR_NAMES[linear]}"
        for half, values in (("lora_a", pair.a), ("lora_b", _interleave(config, linear, pair.b))):
            tensors.append(
                PlannedTensor(name=f"{name}.{half}", shape=tuple(values.shape), kind="F32", read=_given(values))
            )
    return write_file(target, config.architecture, metadata, tensors, tools or Tools())


def _general(folder: Path) -> dict[str, Any]:
    found = provenance_of(folder)
    name = str(found.get("source", {}).get("name") or folder.resolve().name)
    adapter = found.get("merged", {}).get("adapter")
    metadata: dict[str, Any] = {"general.type": "model", "general.name": f"{name} {adapter}" if adapter else name}
    if licence := found.get("licence"):
        metadata["general.license"] = str(licence).lower()
    if languages := found.get("general", {}).get("general.languages"):
        metadata["general.languages"] = languages
    return metadata


def _shape(config: ModelConfig) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.layer_rope_bases[0]),
        "vocab_size": config.vocab_size,
    }
    if _is_linear(config):
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_factors[0])}
    return {f"{config.architecture}.{key}": value for key, value in metadata.items()}


def _is_linear(config: ModelConfig) -> bool:
    return len(set(config.rope_factors)) == 1


def _rope(config: ModelConfig) -> Iterator[PlannedTensor]:
    """Llama 3.1's divisors of the rotary frequencies."""
    import torch

    if config.rope_factors and not _is_linear(config):
        values = torch.tensor(config.rope_factors)
        yield PlannedTensor(name="rope_freqs.weight", shape=tuple(values.shape), kind="F32", read=_given(values))


def _tokenizer(found: GGUFTokenizer) -> dict[str, Any]:
    return {
        "tokenizer.ggml.tokens": found.tokens,
        "tokenizer.ggml.token_type": found.types,
        "tokenizer.ggml.merges": found.merges,
        **found.metadata,
    }


def _tensors(checkpoint: SafetensorsCheckpoint, kind: Kind) -> Iterator[PlannedTensor]:
    config = checkpoint.config
    for name in tensor_names(config):
        layer, _, which = name.rpartition(".")
        theirs = (f"{layer.replace('layers.', 'blk.')}." if layer else "") + TENSOR_NAMES[which]
        vector = is_vector(name)
        shape = tensor_shape(config, name)[vector:]
        stored = "F32" if vector else "Q8_0" if kind == "Q4_1" and which in ("embedding", "head") else kind
        yield PlannedTensor(name=theirs, shape=shape, kind=stored, read=_reader(checkpoint, name, shape))


def _reader(checkpoint: SafetensorsCheckpoint, name: str, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    import torch

    def read() -> torch.Tensor:
        values = dequantize(checkpoint.tensor(name), torch.float32)
        return _interleave(checkpoint.config, name.rpartition(".")[2], values).reshape(shape)

    return read


def _given(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: values


def _interleave(config: ModelConfig, kind: str, values: torch.Tensor) -> torch.Tensor:
    """Rows of Llama's q and k as GGUF wants them: the halves of every rotated pair side by side."""
    if config.architecture != "llama" or kind not in ("q", "k"):
        return values
    halves = values.view(-1, 2, config.head_dim // 2, values.shape[1])
    return halves.transpose(1, 2).reshape(values.shape)
