from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_models import write_tiny_gguf

from midwatch.engine.backends import open_backend
from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.cpu.backend import why_not_for
from midwatch.engine.cpu.build import why_unavailable
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings


def opened(path: Path, **settings: object):
    return open_backend(open_checkpoint(path), EngineSettings(threads=1, **settings), max_model_len=64)


def test_the_settings_choose_the_kernels(tiny_path: Path) -> None:
    assert opened(tiny_path, kernels="torch").name == "torch"
    assert opened(tiny_path, dtype="float32").name == "torch"
    assert opened(tiny_path, quantization="none").name == "torch"
    expected = "torch" if why_unavailable(None) else "native"
    if not torch.cuda.is_available():
        assert opened(tiny_path).name == expected


def test_without_a_compiler_pytorch_computes_and_says_why(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "kernels"
    in_the_way.write_text("a file where the folder should be")
    backend = open_backend(
        open_checkpoint(tiny_path), EngineSettings(threads=1), max_model_len=64, kernel_dir=in_the_way
    )
    assert backend.name == "torch"
    assert "several times slower" in caplog.text
    with pytest.raises(ModelError, match="C step cannot be used"):
        open_backend(
            open_checkpoint(tiny_path),
            EngineSettings(threads=1, kernels="native"),
            max_model_len=64,
            kernel_dir=in_the_way,
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_said(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match="No CUDA GPU"):
        opened(tiny_path, device="cuda")


def test_a_pool_that_does_not_fit_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="missing") as caught:
        open_backend(open_checkpoint(path), EngineSettings(threads=1, kv_cache_mib=100_000_000), max_model_len=64)
    assert "kv_cache_mib" in caught.value.next_step


def test_a_head_size_that_the_c_step_cannot_take_is_said(tiny_path: Path) -> None:
    import dataclasses

    config = open_checkpoint(tiny_path).config
    assert why_not_for(config) is None
    assert "16 divides" in (why_not_for(dataclasses.replace(config, head_dim=24)) or "")
