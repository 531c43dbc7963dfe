"""Models for the engine's tests: the real SmolLM2 once per session, and a tiny random one."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from engine_models import MakeEngine, write_tiny_gguf

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.tokenizer import Tokenizer, open_tokenizer
from midwatch.engine.transformer import TorchBackend
from midwatch.settings import EngineSettings

REFERENCE = EngineSettings(threads=1, dtype="float32", quantization="none", kernels="torch", device="cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads wait for each other at every operation when the machine is busy; tests need no speed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2_parts(smollm2_path: Path) -> tuple[Tokenizer, TorchBackend]:
    """SmolLM2 in float32 without quantized kernels: the reference."""
    checkpoint = open_checkpoint(smollm2_path)
    backend = TorchBackend(checkpoint, REFERENCE, max_model_len=2048)
    return open_tokenizer(smollm2_path, checkpoint), backend


@pytest.fixture(scope="session")
def smollm2(smollm2_parts: tuple[Tokenizer, TorchBackend]) -> MakeEngine:
    """Engines over the one loaded SmolLM2, with settings of the test's choice; the default one is shared."""
    from midwatch.engine.engine import Engine

    @functools.cache
    def make(**settings: object) -> Engine:
        tokenizer, backend = smollm2_parts
        return Engine(tokenizer, backend.with_own_pool(), REFERENCE.model_copy(update=settings), 2048)

    return make


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's file."""
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> MakeEngine:
    """Engines over the tiny model, float32."""
    from midwatch.engine.engine import Engine

    def make(**settings: object) -> Engine:
        return Engine.load(tiny_path, REFERENCE.model_copy(update=settings))

    return make
