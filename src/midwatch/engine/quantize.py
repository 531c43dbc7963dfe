"""Weights as numbers: dequantize GGUF blocks, and multiply by them in the form that is fastest here.

`make_linear` is the one place that chooses how a matrix is multiplied. Which wins was measured on two Zen 4 cores: an
int4 kernel up to about eight tokens (it streams a quarter of the bytes), a bfloat16 matrix product above (it computes
faster). Block formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0, block_q4_1,
block_q8_0). Shapes: T tokens, N output rows, K input columns, G = K / 32 groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from midwatch.engine.weights import BlockTensor
from midwatch.errors import ModelError

Quantization = Literal["int4", "none"]

GROUP = 32
KERNEL_CAPABILITIES = ("AVX2", "AVX512")  # elsewhere PyTorch's int4 and int8 kernels are plain loops
INT4_MAX_TOKENS = 8
INT8_HEAD_MAX_TOKENS = 4


class Linear(Protocol):
    """y = x Wᵀ for x of shape [T, K] and W of shape [N, K]."""

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return [T, N] in the dtype of `x_TK`."""
        ...


class DenseLinear:
    """A plain matrix product with dequantized weights [N, K]."""

    def __init__(self, weight_NK: torch.Tensor) -> None:
        self.weight_NK = weight_NK

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """One `F.linear`."""
        return F.linear(x_TK, self.weight_NK)


class Int4Linear:
    """4-bit weights for a few tokens, the same weights in bfloat16 for many.

    The file's 4-bit codes are kept as they are; only their scales and offsets are rounded from float16 to bfloat16.
    """

    def __init__(self, packed: torch.Tensor, scales_offsets_GN2: torch.Tensor, dense: DenseLinear) -> None:
        self.packed = packed
        self.scales_offsets_GN2 = scales_offsets_GN2
        self.dense = dense

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """The int4 kernel for up to `INT4_MAX_TOKENS` tokens, else the matrix product."""
        if x_TK.shape[0] <= INT4_MAX_TOKENS:
            out: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x_TK, self.packed, GROUP, self.scales_offsets_GN2
            )
            return out
        return self.dense(x_TK)


class Int8HeadLinear:
    """A vocabulary-sized matrix with one scale per row in int8 for a few tokens, in bfloat16 for many."""

    def __init__(self, dense: DenseLinear) -> None:
        weight_NK = dense.weight_NK.float()
        scale_N = weight_NK.abs().amax(dim=1).clamp_min(1e-12) / 127
        self.codes_NK = torch.round(weight_NK / scale_N[:, None]).to(torch.int8)
        self.scale_N = scale_N.to(torch.bfloat16)
        self.dense = dense

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """The int8 kernel for up to `INT8_HEAD_MAX_TOKENS` tokens, else the matrix product."""
        if x_TK.shape[0] <= INT8_HEAD_MAX_TOKENS:
            return torch._weight_int8pack_mm(x_TK, self.codes_NK, self.scale_N)
        return self.dense(x_TK)


def make_linear(parts: Sequence[BlockTensor], dtype: torch.dtype, quantization: Quantization) -> Linear:
    """Build one matrix of the rows of `parts`, one below the other (fused QKV, fused gate and up).

    int4 needs bfloat16 and blocks of Q4_0 or Q4_1 in every part; anything else multiplies dequantized weights.
    """
    dense = DenseLinear(torch.cat([dequantize(part, dtype) for part in parts]))
    has_kernel = torch.backends.cpu.get_cpu_capability() in KERNEL_CAPABILITIES
    four_bit = has_kernel and all(part.ggml_type in ("Q4_0", "Q4_1") and part.columns % GROUP == 0 for part in parts)
    rows = sum(part.rows for part in parts)
    if quantization == "none" or dtype is not torch.bfloat16 or not four_bit or rows % 16:
        return dense
    codes_NK = torch.cat([_codes(part) for part in parts])
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_NK, 2)
    scales_offsets = torch.cat([_scales_offsets(part) for part in parts])
    return Int4Linear(packed, scales_offsets.transpose(0, 1).contiguous(), dense)


def make_head(weight_NK: torch.Tensor, quantization: Quantization) -> Linear:
    """Build the output head from dequantized weights; int8 rows for single tokens where quantization is allowed."""
    dense = DenseLinear(weight_NK)
    has_kernel = torch.backends.cpu.get_cpu_capability() in KERNEL_CAPABILITIES
    if quantization == "none" or weight_NK.dtype is not torch.bfloat16 or not has_kernel:
        return dense
    return Int8HeadLinear(dense)


def dequantize(tensor: BlockTensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of a tensor, shape [rows, columns]. Raises `ModelError` for a type nobody here can read."""
    blocks = tensor.blocks
    if tensor.ggml_type == "F32":
        return _view(blocks, torch.float32).to(dtype)
    if tensor.ggml_type == "F16":
        return _view(blocks, torch.float16).to(dtype)
    if tensor.ggml_type == "BF16":
        return _view(blocks, torch.bfloat16).to(dtype)
    if tensor.ggml_type == "Q8_0":
        blocks_NGb = blocks.view(tensor.rows, -1, 34)
        scale_NG1 = _view(blocks_NGb[..., :2], torch.float16).float()
        values = blocks_NGb[..., 2:].view(torch.int8).float() * scale_NG1
        return values.view(tensor.rows, tensor.columns).to(dtype)
    if tensor.ggml_type in ("Q4_0", "Q4_1"):
        scale_NG1, offset_NG1 = _scale_offset(tensor)
        if tensor.ggml_type == "Q4_0":
            offset_NG1 = -8 * scale_NG1
        values = _nibbles(tensor, torch.float32).mul_(scale_NG1).add_(offset_NG1)
        return values.view(tensor.rows, tensor.columns).to(dtype)
    return _dequantize_by_library(tensor, dtype)


def _dequantize_by_library(tensor: BlockTensor, dtype: torch.dtype) -> torch.Tensor:
    import gguf

    kind = gguf.GGMLQuantizationType[tensor.ggml_type]
    try:
        values = gguf.quants.dequantize(tensor.blocks.numpy(), kind)
    except NotImplementedError:
        raise ModelError(
            f"Tensor {tensor.name} is of type {tensor.ggml_type}, which cannot be dequantized.",
            "Choose a file of another quantization, such as Q4_1 or Q8_0.",
        ) from None
    return torch.from_numpy(values).view(tensor.rows, tensor.columns).to(dtype)


def _view(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Reinterpret bytes; copied first, since a tensor in a file may lie at any address."""
    return raw.clone(memory_format=torch.contiguous_format).view(dtype)


def _scale_offset(tensor: BlockTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per group:

    weight = code · scale + offset for Q4_1, weight = (code - 8) · scale for Q4_0 (offset 0). [N, G, 1].
    """
    if tensor.ggml_type == "Q4_0":
        scale_NG1 = _view(tensor.blocks.view(tensor.rows, -1, 18)[..., :2], torch.float16).float()
        return scale_NG1, torch.zeros_like(scale_NG1)
    pair_NG2 = _view(tensor.blocks.view(tensor.rows, -1, 20)[..., :4], torch.float16).float()
    return pair_NG2[..., :1], pair_NG2[..., 1:]


def _nibbles(tensor: BlockTensor, dtype: torch.dtype) -> torch.Tensor:
    """The 4-bit codes, [N, G, 32]: the low halves of a block's 16 bytes come first, then the high halves."""
    header = 2 if tensor.ggml_type == "Q4_0" else 4
    bytes_NGb = tensor.blocks.view(tensor.rows, -1, header + 16)[..., header:]
    codes = torch.empty(tensor.rows, bytes_NGb.shape[1], 2, 16, dtype=dtype)
    codes[:, :, 0] = bytes_NGb & 15
    codes[:, :, 1] = bytes_NGb >> 4
    return codes.view(tensor.rows, -1, GROUP)


def _codes(tensor: BlockTensor) -> torch.Tensor:
    return _nibbles(tensor, torch.int32).view(tensor.rows, tensor.columns)


def _scales_offsets(tensor: BlockTensor) -> torch.Tensor:
    """What the int4 kernel wants per group, [N, G, 2]: it computes (code - 8) · scale + offset."""
    scale_NG1, offset_NG1 = _scale_offset(tensor)
    if tensor.ggml_type == "Q4_1":
        offset_NG1 = offset_NG1 + 8 * scale_NG1
    return torch.cat([scale_NG1, offset_NG1], dim=-1).to(torch.bfloat16)
