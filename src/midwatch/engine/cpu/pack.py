"""Lay weights out in the tiles that the C step multiplies, straight from a file's blocks.

4-bit blocks and Q8_0 keep their codes and scales; everything else is rounded to 8 bits (or 4, if the settings say so)
in groups of 32, a few rows at a time. The only copy of a weight that stays is the packed one.
Legend: N output rows, K input columns.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import mmap
from collections.abc import Sequence

import numpy as np
import torch

from midwatch.engine.checkpoint import BlockTensor
from midwatch.engine.cpu.structs import CMatrix
from midwatch.engine.quantize import FOUR_BIT, Quantization, dequantize
from midwatch.errors import ModelError

GROUP = 32
TILE = 16
F32 = 0
AS_THEY_ARE = {("Q4_0", 4): 2, ("Q4_1", 4): 3, ("Q8_0", 8): 8, ("Q4_K", 4): 12}
"""(type, bits) → GGML's number, for blocks that need no rounding."""
CHUNK_WEIGHTS = 1 << 20


def up_to(count: int, multiple: int) -> int:
    """`count`, raised to a multiple."""
    return -(-count // multiple) * multiple


class Arena:
    """Zeroed memory, in one map of its own, that costs nothing until it is written to."""

    def __init__(self, capacity_bytes: int, *, huge_pages: bool) -> None:
        size = max(capacity_bytes, mmap.PAGESIZE)
        try:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise ModelError(f"{size / (1 << 20):,.0f} MiB of memory are not to be had: {error}.") from None
        advice = getattr(mmap, "MADV_HUGEPAGE" if huge_pages else "MADV_NOHUGEPAGE", None)
        if advice is not None:
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._map.madvise(advice)
        self.bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._address = self.bytes.ctypes.data
        self._used = 0

    def take(self, size_bytes: int) -> int:
        """Address of so many zero bytes, aligned to a cache line."""
        start = up_to(self._used, 64)
        self._used = start + size_bytes
        assert self._used <= self.bytes.size, "the arena was sized too small"
        return self._address + start


def bits_of(tensor: BlockTensor, quantization: Quantization) -> int:
    """In how many bits a tensor is kept."""
    if quantization == "int8":
        return 8
    return 4 if quantization == "int4" or tensor.ggml_type in FOUR_BIT else 8


class Packer:
    """Packs matrices into an arena; counts the bytes that one decode step reads."""

    def __init__(self, library: ctypes.CDLL, arena: Arena, quantization: Quantization) -> None:
        self._library = library
        self._arena = arena
        self._quantization = quantization

    def stacked(self, parts: Sequence[BlockTensor], *, keep_eight: bool = False) -> tuple[CMatrix, int]:
        """One matrix of the rows of `parts`, one below the other, each in its own width; and its bytes.

        `keep_eight`: a tensor of other than 4 bits is kept in 8 even where the settings ask for 4.
        """
        matrix = CMatrix()
        matrix.num_segments = len(parts)
        matrix.groups = up_to(parts[0].columns, GROUP) // GROUP
        total = 0
        for index, part in enumerate(parts):
            bits = bits_of(part, "auto" if keep_eight and self._quantization == "int4" else self._quantization)
            # A residual's width is padded to whole groups, so its matrix has that many rows.
            tiles = up_to(part.rows, TILE if len(parts) > 1 else GROUP) // TILE
            data, size = self._room(bits, matrix.groups, tiles)
            segment = matrix.segment[index]
            segment.data, segment.first_tile, segment.bits = data, matrix.tiles, bits
            self._pack(part, data, bits, matrix.groups, first=0, step=1)
            matrix.tiles += tiles
            total += size
        return matrix, total

    def interleaved(self, gate: BlockTensor, up: BlockTensor) -> tuple[CMatrix, int]:
        """Gate and up with their tiles in turn, in one width, padded to whole groups of their product."""
        bits = max(bits_of(part, self._quantization) for part in (gate, up))
        matrix = CMatrix()
        matrix.num_segments = 1
        matrix.groups = up_to(gate.columns, GROUP) // GROUP
        matrix.tiles = 2 * up_to(gate.rows, GROUP) // TILE
        data, size = self._room(bits, matrix.groups, matrix.tiles)
        segment = matrix.segment[0]
        segment.data, segment.first_tile, segment.bits = data, 0, bits
        self._pack(gate, data, bits, matrix.groups, first=0, step=2)
        self._pack(up, data, bits, matrix.groups, first=1, step=2)
        return matrix, size

    def _room(self, bits: int, groups: int, tiles: int) -> tuple[int, int]:
        size = self._library.mw_tile_bytes(bits, groups) * tiles
        return self._arena.take(size), size

    def _pack(self, part: BlockTensor, data: int, bits: int, groups: int, *, first: int, step: int) -> None:
        kind = AS_THEY_ARE.get((part.ggml_type, bits))
        chunk = part.rows if kind is not None else max(1, CHUNK_WEIGHTS // part.columns)
        for row in range(0, part.rows, chunk):
            rows = min(chunk, part.rows - row)
            source = part.blocks[row : row + rows]
            if kind is None:
                piece = dataclasses.replace(part, rows=rows, blocks=source)
                source = dequantize(piece, torch.float32)
            source = source.contiguous()
            row_bytes = source.stride(0) * source.element_size()
            wrong = self._library.mw_pack(
                data, bits, groups, first, step, row, source.data_ptr(),
                F32 if kind is None else kind, rows, part.columns, row_bytes,
            )  # fmt: skip
            assert wrong == 0, f"{part.ggml_type} in {bits} bits is not packed"


def capacity_bytes(library: ctypes.CDLL, shapes: Sequence[tuple[int, int]]) -> int:
    """Room that matrices of these shapes (N, K) may need at most, whatever their widths."""
    tile = library.mw_tile_bytes
    return sum(
        up_to(rows, GROUP) // TILE * int(tile(8, up_to(columns, GROUP) // GROUP)) + 64 for rows, columns in shapes
    )
