"""Models for the engine's tests: the real SmolLM2 once per session, and a tiny random one."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from engine_models import MakeEngine, write_tiny_gguf

from midwatch.engine.engine import Engine
from midwatch.engine.tokenizer import Tokenizer
from midwatch.engine.transformer import Transformer
from midwatch.engine.weights import GGUF, read_config
from midwatch.settings import EngineSettings


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads wait for each other at every operation when the machine is busy; tests need no speed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2_parts(smollm2_path: Path) -> tuple[Tokenizer, Transformer]:
    """SmolLM2 in float32 without quantized kernels: the reference."""
    file = GGUF(smollm2_path)
    config = read_config(file)
    model = Transformer(file, config, dtype=torch.float32, quantization="none", max_positions=2048)
    return Tokenizer(file), model


@pytest.fixture(scope="session")
def smollm2(smollm2_parts: tuple[Tokenizer, Transformer]) -> MakeEngine:
    """Engines over the one loaded SmolLM2, with settings of the test's choice; the default one is shared."""

    @functools.cache
    def make(**settings: object) -> Engine:
        chosen = EngineSettings(threads=1, dtype="float32", quantization="none", **settings)
        return Engine(*smollm2_parts, chosen, 2048)

    return make


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's file."""
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> MakeEngine:
    """Engines over the tiny model, float32."""

    def make(**settings: object) -> Engine:
        return Engine.load(tiny_path, EngineSettings(threads=1, dtype="float32", quantization="none", **settings))

    return make
