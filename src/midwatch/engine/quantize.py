"""Weights as numbers: dequantize GGUF blocks, and multiply by them in the form that is fastest here.

`make_linear` is the one place that chooses how PyTorch multiplies a matrix. Which wins was measured on two Zen 4 cores:
an int4 kernel up to about eight tokens (it streams a quarter of the bytes), an int8 kernel up to about four, a bfloat16
matrix product above (it computes faster). Block formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
(block_q4_0, block_q4_1, block_q8_0, block_q4_K, block_q6_K); the `gguf` library reads the rest.
Shapes: T tokens, N output rows, K input columns, G = K / 32 groups, S = K / 256 super-blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from midwatch.engine.checkpoint import BlockTensor
from midwatch.errors import ModelError

Quantization = Literal["auto", "int4", "int8", "none"]

GROUP = 32
FOUR_BIT = ("Q4_0", "Q4_1", "Q4_K")
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KERNEL_CAPABILITIES = ("AVX2", "AVX512")  # elsewhere PyTorch's int4 and int8 kernels are plain loops
INT4_MAX_TOKENS = 8
INT8_MAX_TOKENS = 4
PIECE_WEIGHTS = 1 << 20


class Linear(Protocol):
    """y = x Wᵀ for x of shape [T, K] and W of shape [N, K]."""

    bytes_per_decode: int
    """Bytes of weights that one token reads."""

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return [T, N] in the dtype of `x_TK`."""
        ...


class DenseLinear:
    """A plain matrix product with dequantized weights [N, K]."""

    def __init__(self, weight_NK: torch.Tensor) -> None:
        self.weight_NK = weight_NK
        self.bytes_per_decode = weight_NK.nbytes

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """One `F.linear`."""
        return F.linear(x_TK, self.weight_NK)


class Int4Linear:
    """4-bit weights for a few tokens, the same weights in bfloat16 for many.

    A file's 4-bit codes are kept as they are; only their scales and offsets are rounded to bfloat16.
    """

    def __init__(self, codes_NG: torch.Tensor, scale_NG: torch.Tensor, offset_NG: torch.Tensor, dense: Linear) -> None:
        codes_NK = codes_NG.flatten(1).int()
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_NK, 2)
        # The kernel computes (code - 8) · scale + offset.
        pairs_NG2 = torch.stack([scale_NG, offset_NG + 8 * scale_NG], dim=-1)
        self.scales_offsets_GN2 = pairs_NG2.to(torch.bfloat16).transpose(0, 1).contiguous()
        self.dense = dense
        self.bytes_per_decode = codes_NK.numel() // 2 + self.scales_offsets_GN2.nbytes

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """The int4 kernel for up to `INT4_MAX_TOKENS` tokens, else the matrix product."""
        if x_TK.shape[0] <= INT4_MAX_TOKENS:
            out: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x_TK, self.packed, GROUP, self.scales_offsets_GN2
            )
            return out
        return self.dense(x_TK)


class Int8Linear:
    """Weights with one scale per row in int8 for a few tokens, in bfloat16 for many."""

    def __init__(self, parts: Sequence[BlockTensor], dense: Linear) -> None:
        pieces = [_to_eight_bit(rows) for part in parts for rows in _pieces(part)]
        self.codes_NK = torch.cat([codes for codes, _ in pieces])
        self.scale_N = torch.cat([scale for _, scale in pieces]).to(torch.bfloat16)
        self.dense = dense
        self.bytes_per_decode = self.codes_NK.nbytes + self.scale_N.nbytes

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """The int8 kernel for up to `INT8_MAX_TOKENS` tokens, else the matrix product."""
        if x_TK.shape[0] <= INT8_MAX_TOKENS:
            return torch._weight_int8pack_mm(x_TK, self.codes_NK, self.scale_N)
        return self.dense(x_TK)


def make_linear(
    parts: Sequence[BlockTensor],
    dtype: torch.dtype,
    quantization: Quantization,
    *,
    weight_NK: torch.Tensor | None = None,
) -> Linear:
    """Build one matrix of the rows of `parts`, one below the other (fused QKV, fused gate and up).

    `auto` multiplies 4-bit files in int4 and other quantized ones in int8; `int4` and `int8` do so with any file. All
    need bfloat16 and a CPU with the kernels, else the product is dense. `weight_NK`: the numbers, if they are at hand.
    """
    if weight_NK is None:
        weight_NK = torch.cat([dequantize(part, dtype) for part in parts])
    dense = DenseLinear(weight_NK)
    kernel = _kernel(parts, quantization)
    if dtype is not torch.bfloat16 or torch.backends.cpu.get_cpu_capability() not in KERNEL_CAPABILITIES:
        return dense
    if kernel == "int4" and weight_NK.shape[0] % 16 == 0 and weight_NK.shape[1] % GROUP == 0:
        four_bit = [_four_bit(part) if part.ggml_type in FOUR_BIT else _to_four_bit(part) for part in parts]
        codes_NG, scale_NG, offset_NG = (torch.cat(piece) for piece in zip(*four_bit, strict=True))
        return Int4Linear(codes_NG, scale_NG, offset_NG, dense)
    if kernel == "int8":
        return Int8Linear(parts, dense)
    return dense


def _kernel(parts: Sequence[BlockTensor], quantization: Quantization) -> Literal["int4", "int8", "none"]:
    if quantization != "auto":
        return quantization
    if all(part.ggml_type in FOUR_BIT for part in parts):
        return "int4"
    return "int8" if all(part.ggml_type not in PLAIN for part in parts) else "none"


def make_head(tensor: BlockTensor, dtype: torch.dtype, quantization: Quantization, weight_NK: torch.Tensor) -> Linear:
    """Build the output head, whose numbers are at hand; it keeps 8 bits where layers are made to have 4."""
    kernel = "int8" if quantization == "int4" else quantization
    return make_linear([tensor], dtype, kernel, weight_NK=weight_NK)


def dequantize(tensor: BlockTensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of a tensor, shape [rows, columns]. Raises `ModelError` for a type nobody here can read."""
    values_NK = torch.empty(tensor.rows, tensor.columns, dtype=dtype)
    start = 0
    for piece in _pieces(tensor):
        values_NK[start : start + piece.rows] = _dequantize(piece)
        start += piece.rows
    return values_NK


def _pieces(tensor: BlockTensor) -> Iterator[BlockTensor]:
    """The tensor in runs of rows: float32 copies of a whole vocabulary would take gigabytes, and miss every cache."""
    size = max(1, PIECE_WEIGHTS // tensor.columns)
    for start in range(0, tensor.rows, size):
        rows = min(size, tensor.rows - start)
        yield replace(tensor, rows=rows, blocks=tensor.blocks[start : start + rows])


def _dequantize(tensor: BlockTensor) -> torch.Tensor:
    kind = tensor.ggml_type
    if kind in PLAIN:
        return _view(tensor.blocks, PLAIN[kind])
    if kind in FOUR_BIT:
        codes_NGg, scale_NG, offset_NG = _four_bit(tensor)
        values = codes_NGg.float().mul_(scale_NG[..., None]).add_(offset_NG[..., None])
    elif kind == "Q8_0":
        blocks_NGb = tensor.blocks.view(tensor.rows, -1, 34)
        scale_NG1 = _view(blocks_NGb[..., :2], torch.float16).float()
        values = blocks_NGb[..., 2:].view(torch.int8).float().mul_(scale_NG1)
    elif kind == "Q6_K":
        values = _six_bit(tensor)
    else:
        return _dequantize_by_library(tensor)
    return values.view(tensor.rows, tensor.columns)


def _dequantize_by_library(tensor: BlockTensor) -> torch.Tensor:
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[tensor.ggml_type]
    try:
        with np.errstate(all="ignore"):  # scales that are no numbers are the file's affair
            values = gguf.quants.dequantize(tensor.blocks.numpy(), kind)
    except NotImplementedError:
        raise ModelError(
            f"Tensor {tensor.name} is of type {tensor.ggml_type}, which cannot be dequantized.",
            "Choose a file of another quantization, such as Q4_1 or Q8_0.",
        ) from None
    return torch.from_numpy(values).view(tensor.rows, tensor.columns)


def _view(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Reinterpret bytes; copied first, since a tensor in a file may lie at any address."""
    return raw.clone(memory_format=torch.contiguous_format).view(dtype)


def _four_bit(tensor: BlockTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [N, G, 32], scales and offsets [N, G] of a 4-bit tensor: weight = code · scale + offset."""
    if tensor.ggml_type == "Q4_K":
        return _four_bit_super(tensor)
    header = 2 if tensor.ggml_type == "Q4_0" else 4
    blocks_NGb = tensor.blocks.view(tensor.rows, -1, header + 16)
    numbers_NGh = _view(blocks_NGb[..., :header], torch.float16).float()
    scale_NG = numbers_NGh[..., 0]
    offset_NG = -8 * scale_NG if tensor.ggml_type == "Q4_0" else numbers_NGh[..., 1]
    return _nibbles(blocks_NGb[..., header:]).flatten(2), scale_NG, offset_NG


def _four_bit_super(tensor: BlockTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q4_K: eight groups of 32 share two float16 numbers; each group has a 6-bit factor of either."""
    blocks_NSb = tensor.blocks.view(tensor.rows, -1, 144)
    numbers_NS2 = _view(blocks_NSb[..., :4], torch.float16).float()
    # Twelve bytes: six bits of factors 0-3, six bits of minima 0-3, low nibbles of both 4-7 (their upper two bits are
    # the upper two of the first eight bytes).
    first_NS4, second_NS4, third_NS4 = torch.unflatten(blocks_NSb[..., 4:16], -1, (3, 4)).unbind(-2)
    factor_NS8 = torch.cat([first_NS4 & 63, (third_NS4 & 15) | (first_NS4 >> 6 << 4)], dim=-1)
    minimum_NS8 = torch.cat([second_NS4 & 63, (third_NS4 >> 4) | (second_NS4 >> 6 << 4)], dim=-1)
    scale_NG = (numbers_NS2[..., :1] * factor_NS8).flatten(1)
    offset_NG = -(numbers_NS2[..., 1:] * minimum_NS8).flatten(1)
    codes_NG = _nibbles(torch.unflatten(blocks_NSb[..., 16:], -1, (4, 32)))  # [N, S, 4, 2, 32]
    return codes_NG.reshape(tensor.rows, -1, GROUP), scale_NG, offset_NG


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The low halves of the bytes of the last dimension, then the high halves: [..., b] becomes [..., 2, b]."""
    return torch.stack([packed & 15, packed >> 4], dim=-2)


def _six_bit(tensor: BlockTensor) -> torch.Tensor:
    """Q6_K: per half of a super-block 4 · 32 codes, low four bits and high two bits apart; a scale for every 16."""
    blocks_NSb = tensor.blocks.view(tensor.rows, -1, 210)
    low_NSh = torch.unflatten(_nibbles(torch.unflatten(blocks_NSb[..., :128], -1, (2, 64))), -1, (2, 32))
    high_NSh = torch.unflatten(blocks_NSb[..., 128:192], -1, (2, 1, 32)) >> torch.tensor([[0], [2], [4], [6]]) & 3
    codes = low_NSh.flatten(-3, -2) + (high_NSh << 4).to(torch.int8) - 32  # [N, S, 2, 4, 32]
    scale_NS16 = blocks_NSb[..., 192:208].view(torch.int8).float() * _view(blocks_NSb[..., 208:], torch.float16).float()
    return codes.reshape(*scale_NS16.shape, 16).float().mul_(scale_NS16[..., None])


def _to_eight_bit(tensor: BlockTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round any tensor to 8 bits: codes [N, K], and one scale per row [N]."""
    values_NK = _dequantize(tensor).float()
    scale_N = values_NK.abs().amax(dim=1).clamp_min(1e-12) / 127
    return torch.round(values_NK / scale_N[:, None]).to(torch.int8), scale_N


def _to_four_bit(tensor: BlockTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round any tensor to 4 bits, each group from its least to its largest number. Returns as `_four_bit` does."""
    values_NGg = torch.unflatten(dequantize(tensor, torch.float32), 1, (-1, GROUP))
    offset_NG, largest_NG = values_NGg.aminmax(dim=-1)
    scale_NG = (largest_NG - offset_NG).clamp_min(1e-12) / 15
    codes_NGg = torch.round((values_NGg - offset_NG[..., None]) / scale_NG[..., None])
    return codes_NGg.clamp(0, 15).to(torch.uint8), scale_NG, offset_NG
