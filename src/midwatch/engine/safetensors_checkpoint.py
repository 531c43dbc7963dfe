"""A folder of safetensors as a `Checkpoint`. Comes next."""

from __future__ import annotations

from pathlib import Path

from midwatch.engine.checkpoint import BlockTensor, ModelConfig
from midwatch.errors import ModelError


class SafetensorsCheckpoint:
    """Refuses every folder for now."""

    config: ModelConfig

    def __init__(self, path: Path) -> None:
        raise ModelError(f"{path} is a folder; the engine reads GGUF files.", "Give the path of a GGUF file.")

    def tensor(self, name: str) -> BlockTensor:
        """Unreachable."""
        raise NotImplementedError(name)

    def check_all_taken(self) -> None:
        """Unreachable."""
