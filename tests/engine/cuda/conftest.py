"""Without a GPU the kernels run on CPU tensors in Triton's interpreter; without Triton the folder is skipped."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
