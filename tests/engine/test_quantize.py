"""Blocks as numbers, and products with them, against the `gguf` library."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.engine.checkpoint import BlockTensor
from midwatch.engine.quantize import DenseLinear, Int4Linear, Int8Linear, dequantize, make_head, make_linear
from midwatch.engine.weights import GGML_TYPES

SIZES = {name: (weights, num_bytes) for name, weights, num_bytes in GGML_TYPES.values()}
OWN = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]
HAS_KERNELS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def block_tensor(values: np.ndarray, kind: str) -> BlockTensor:
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8).reshape(values.shape[0], -1).copy())
    return BlockTensor(name="t", ggml_type=kind, rows=values.shape[0], columns=values.shape[1], blocks=blocks)


def random_tensor(kind: str, rows: int, columns: int, seed: int) -> BlockTensor:
    """Blocks of random bytes whose float16 numbers are small."""
    random = np.random.default_rng(seed)
    weights, num_bytes = SIZES[kind]
    raw = random.integers(0, 256, (rows, columns // weights, num_bytes), dtype=np.uint8)
    for at in {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        scales = random.normal(0, 0.02, raw.shape[:2]).astype(np.float16)
        raw[..., at : at + 2] = scales[..., None].view(np.uint8)
    blocks = torch.from_numpy(raw.reshape(rows, -1))
    return BlockTensor(name="t", ggml_type=kind, rows=rows, columns=columns, blocks=blocks)


def by_library(tensor: BlockTensor) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[tensor.ggml_type]
    raw = tensor.blocks.numpy()
    if tensor.ggml_type in ("F32", "F16"):
        raw = raw.view({"F32": np.float32, "F16": np.float16}[tensor.ggml_type])
    return torch.from_numpy(np.array(gguf.quants.dequantize(raw, kind), dtype=np.float32)).view(tensor.rows, -1)


@pytest.mark.parametrize("kind", [*OWN, "Q5_0", "IQ4_NL"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_dequantized_numbers_equal_the_library(kind: str, data: st.DataObject) -> None:
    weights, num_bytes = SIZES[kind]
    rows, blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    raw = data.draw(st.binary(min_size=rows * blocks * num_bytes, max_size=rows * blocks * num_bytes))
    blocks_tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(rows, -1)
    tensor = BlockTensor(name="t", ggml_type=kind, rows=rows, columns=blocks * weights, blocks=blocks_tensor)
    with np.errstate(all="ignore"):
        reference = by_library(tensor)
    torch.testing.assert_close(dequantize(tensor, torch.float32), reference, rtol=1e-6, atol=0, equal_nan=True)


def test_own_types_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.quants, "dequantize", None)
    for kind in OWN:
        weights, _ = SIZES[kind]
        assert dequantize(random_tensor(kind, 2, 2 * max(weights, 32), 0), torch.bfloat16).shape[0] == 2


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 9])
def test_the_int4_kernel_multiplies_with_the_files_own_codes(kind: str, num_tokens: int) -> None:
    parts = [random_tensor(kind, rows, 256, rows) for rows in (64, 32)]
    x = torch.randn(num_tokens, 256, generator=torch.Generator().manual_seed(0))
    exact = x @ torch.cat([dequantize(part, torch.float32) for part in parts]).T
    linear = make_linear(parts, torch.bfloat16, "auto")
    assert isinstance(linear, Int4Linear) or not HAS_KERNELS
    quick = linear(x.bfloat16()).float()
    assert quick.shape == exact.shape
    assert (quick - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_0"])
@pytest.mark.parametrize("num_tokens", [1, 4, 5])
def test_wider_codes_are_multiplied_in_eight_bits_per_row(kind: str, num_tokens: int) -> None:
    tensor = random_tensor(kind, 48, 256, 1)
    x = torch.randn(num_tokens, 256, generator=torch.Generator().manual_seed(0))
    exact = x @ dequantize(tensor, torch.float32).T
    linear = make_linear([tensor], torch.bfloat16, "auto")
    assert isinstance(linear, Int8Linear) or not HAS_KERNELS
    assert (linear(x.bfloat16()).float() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize(("quantization", "limit"), [("int4", 0.12), ("int8", 0.015), ("none", 0.005), ("auto", 0.005)])
def test_plain_weights_are_rounded_only_if_asked(quantization: str, limit: float) -> None:
    values = np.random.default_rng(1).normal(0, 1, (64, 128)).astype(np.float32)
    tensor = block_tensor(values, "BF16")
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    exact = x @ dequantize(tensor, torch.float32).T
    linear = make_linear([tensor], torch.bfloat16, quantization)
    assert (linear(x.bfloat16()).float() - exact).norm() / exact.norm() < limit
    sizes = {"int4": 64 * 128 / 2 + 64 * 4 * 4, "int8": 64 * 128 + 64 * 2}
    if HAS_KERNELS:
        assert linear.bytes_per_decode == sizes.get(quantization, 64 * 128 * 2)
        head = make_head(tensor, torch.bfloat16, quantization, dequantize(tensor, torch.bfloat16))
        assert isinstance(head, Int8Linear if quantization in sizes else DenseLinear)


def test_float32_is_never_rounded() -> None:
    tensor = random_tensor("Q4_1", 32, 64, 3)
    linear = make_linear([tensor], torch.float32, "int4")
    assert torch.equal(linear(torch.eye(64)), dequantize(tensor, torch.float32).T)
