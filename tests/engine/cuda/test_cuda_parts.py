"""The parts of the CUDA backend that are plain arithmetic on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; the CUDA backend is built on it")

from cuda_models import DEVICE

from midwatch.engine.cuda.attention import find_flash, num_splits, row_tiles
from midwatch.engine.cuda.graphs import graph_sizes
from midwatch.engine.cuda.linear import GROUP, make_linear
from midwatch.engine.cuda.loading import rotation_tables
from midwatch.engine.cuda.staging import ALIGN, Staging
from midwatch.errors import SettingsError

# The interpreter's own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")


@pytest.mark.parametrize("most", [1, 3, 16, 64, 65, 250, 256, 1024])
def test_some_graph_holds_every_number_of_sequences_with_little_padding(most: int) -> None:
    sizes = graph_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] >= most
    for count in range(1, most + 1):
        size = next(size for size in sizes if size >= count)
        assert size < 2 * count
        assert size - count < 16


def test_keys_are_split_until_the_gpu_is_full_and_no_further() -> None:
    assert num_splits(256, 8, 1024, 132) == 1
    assert num_splits(64, 8, 8192, 132) == 1
    assert num_splits(1, 8, 64, 132) == 1  # there is nothing to split
    assert num_splits(1, 8, 4096, 132) == 64
    assert num_splits(8, 8, 4096, 132) in (8, 16)
    assert num_splits(0, 8, 4096, 132) >= 1


def test_tiles_cover_every_row_of_the_longer_sequences_once_and_no_single_token() -> None:
    starts = np.array([0, 70, 71, 171, 174], dtype=np.int32)
    lengths = np.array([70, 9, 400, 3], dtype=np.int32)
    sequences, firsts = row_tiles(starts, lengths, group=4, rows=128)
    covered = sorted(
        (int(s), row) for s, first in zip(sequences, firsts, strict=True) for row in range(first, first + 32)
    )
    wanted = [(s, row) for s in (0, 2, 3) for row in range(int(starts[s + 1] - starts[s]))]
    assert [item for item in covered if item in set(wanted)] == wanted
    keys = lengths[sequences] - np.diff(starts)[sequences] + firsts
    assert list(keys) == sorted(keys, reverse=True)  # the longest first


def test_a_step_larger_than_the_buffer_makes_it_grow() -> None:
    staging = Staging(8, DEVICE)
    arrays = [np.arange(5, dtype=np.int32), np.arange(60, dtype=np.int32).reshape(6, 10), np.zeros(0, dtype=np.int32)]
    for _ in range(4):
        sent = staging.pack(arrays)
        for array, tensor in zip(arrays, sent, strict=True):
            assert np.array_equal(array, tensor.cpu().numpy())
            assert tensor.storage_offset() % ALIGN == 0
        arrays = [array + 1 for array in arrays]


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_are_within_half_a_step(bits: int) -> None:
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    layer = make_linear(weight, bits)
    assert layer.bits == bits
    span = weight.view(8, -1, GROUP).aminmax(dim=-1)
    step = (span.max - span.min).repeat_interleave(GROUP, 1) / (2**bits - 1)
    assert (layer.dense(torch.float32) - weight).abs().le(0.53 * step).all()


def test_a_matrix_whose_rows_do_not_divide_into_groups_stays_plain() -> None:
    assert make_linear(torch.randn(8, 128), 8).bits == 8
    assert make_linear(torch.randn(8, 128), 4).bits == 16
    assert make_linear(torch.randn(8, 96), 8).bits == 16


def test_rotary_factors_divide_the_frequencies() -> None:
    cos, sin = rotation_tables(5, 4, 100.0, (1.0, 2.0), torch.device("cpu"))
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1 / 2]))
    assert torch.allclose(cos, angles.cos()) and torch.allclose(sin, angles.sin())


def test_flash_attention_that_is_asked_for_and_missing_is_an_error_with_a_way_out() -> None:
    pytest.importorskip("torch")
    try:
        import vllm.vllm_flash_attn  # noqa: F401
    except ImportError:
        assert find_flash("auto") is None
        with pytest.raises(SettingsError, match="set engine.attention to triton"):
            find_flash("fa3")
    assert find_flash("triton") is None
