"""Which backend computes: the one place where a device and its kernels are chosen."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from midwatch.engine.batch import Backend
from midwatch.engine.checkpoint import Checkpoint
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings

logger = logging.getLogger(__name__)


def open_backend(
    checkpoint: Checkpoint, settings: EngineSettings, *, max_model_len: int, kernel_dir: Path | None = None
) -> Backend:
    """Load weights into the backend that the settings ask for, or into the fastest that runs here.

    `kernel_dir` keeps the compiled C step. Raises `ModelError` if what is asked for cannot run, or does not fit.
    """
    if settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise ModelError("No CUDA GPU can be used here.", "Set engine.device to cpu, or install CUDA's PyTorch.")
        try:
            from midwatch.engine.cuda.backend import CudaBackend
        except ImportError as error:
            raise ModelError(
                f"A GPU is here, but its kernels need Triton, which cannot be imported: {error}.",
                "Install CUDA's PyTorch, which brings Triton, or set engine.device to cpu.",
            ) from None

        return CudaBackend(checkpoint, settings, max_model_len=max_model_len)
    if settings.kernels != "torch" and settings.dtype != "float32" and settings.quantization != "none":
        from midwatch.engine.cpu.backend import CpuBackend, why_not_for
        from midwatch.engine.cpu.build import why_unavailable

        reason = why_not_for(checkpoint.config) or why_unavailable(kernel_dir)
        if reason is None:
            return CpuBackend(checkpoint, settings, max_model_len=max_model_len, kernel_dir=kernel_dir)
        if settings.kernels == "native":
            raise ModelError(f"The C step cannot be used: {reason}", "Set engine.kernels to auto or torch.")
        logger.warning("Computing with PyTorch, several times slower: %s", reason)
    from midwatch.engine.transformer import TorchBackend

    return TorchBackend(checkpoint, settings, max_model_len=max_model_len)
