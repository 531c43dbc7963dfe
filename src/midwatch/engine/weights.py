"""Read a GGUF file: metadata, the table of tensors, and each tensor's raw blocks, straight from a memory map.

What it is: a bounds-checked parser that reads a 49k-token vocabulary in tens of milliseconds. A cut or hostile file
raises `ModelError` before anything of the claimed size is allocated. What it is not: a converter; numbers leave here
as the file holds them; `gguf_checkpoint.py` gives them the engine's names, and `quantize.py` turns them into something
to multiply with. Format: https://github.com/ggml-
org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from midwatch.engine.checkpoint import BlockTensor
from midwatch.errors import ModelError

MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 1 << 12
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
MAX_ITEMS = 1 << 21

# GGML type id → (name, weights in a block, bytes of a block)
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}

_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class _TensorEntry:
    ggml_type: int
    shape: tuple[int, ...]  # fastest-varying first, as in the file
    offset: int
    size_bytes: int


class GGUF:
    """An open GGUF file: `metadata` by key, tensors by name.

    Raises `ModelError` for a file that is missing, cut, damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # A private map could be written to without touching the file, so torch makes views and no copies.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"Cannot read weights from {path}: {error}.", "Give the path of a GGUF file, or a model name to fetch."
            ) from None
        reader = _Reader(self._map, path)
        self.metadata: Mapping[str, Any]
        self.metadata, self._tensors = reader.read()
        self._bytes = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))
        self._taken: set[str] = set()

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors, in the file's order."""
        return tuple(self._tensors)

    @property
    def main_type(self) -> str:
        """The GGML type that holds the most weights, such as `Q4_1`; what people call the file's quantization."""
        weights: Counter[str] = Counter()
        for entry in self._tensors.values():
            weights[GGML_TYPES[entry.ggml_type][0]] += math.prod(entry.shape)
        return weights.most_common(1)[0][0] if weights else "none"

    def tensor(self, name: str, shape: tuple[int, ...]) -> BlockTensor:
        """The raw blocks of one tensor; `shape` is (rows, columns) or (columns,) and must be the file's.

        Raises `ModelError` if the tensor is missing or has another shape.
        """
        entry = self._tensors.get(name)
        if entry is None:
            raise ModelError(f"{self.path} holds no tensor {name}.", "The file is incomplete; fetch it again.")
        found = tuple(reversed(entry.shape))
        if found != shape:
            raise ModelError(f"{self.path}: tensor {name} has shape {found}; its metadata asks for {shape}.")
        self._taken.add(name)
        rows = math.prod(shape[:-1])
        blocks = self._bytes[entry.offset : entry.offset + entry.size_bytes].view(rows, -1)
        type_name = GGML_TYPES[entry.ggml_type][0]
        return BlockTensor(name=name, ggml_type=type_name, rows=rows, columns=shape[-1], blocks=blocks)

    def check_all_taken(self) -> None:
        """Raise `ModelError` if the file holds tensors that nobody asked for: such a model computes something else."""
        left = [name for name in self._tensors if name not in self._taken]
        if left:
            raise ModelError(
                f"{self.path} holds {len(left)} tensors that the engine does not use, such as {left[0]!r}.",
                "Its architecture differs from those that the engine runs; choose another model.",
            )


class _Reader:
    """A cursor over the header that refuses to step outside the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.size = len(data)
        self.at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, _TensorEntry]]:
        if self.size < 24 or self.data[:4] != b"GGUF":
            self.fail("it does not start with the GGUF magic", "Give a GGUF file (other formats are not read).")
        self.at = 4
        version = self.scalar(4)
        if version not in (2, 3):
            self.fail(f"its GGUF version is {version}; 2 and 3 (little-endian) are read")
        num_tensors, num_keys = self.scalar(10), self.scalar(10)
        if num_tensors > MAX_ENTRIES or num_keys > MAX_ENTRIES:
            self.fail(f"it claims {num_tensors} tensors and {num_keys} keys")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string(MAX_NAME_BYTES)
            metadata[key] = self.value(self.scalar(4), key)
        raw_table = [self.tensor_header() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        good = isinstance(alignment, int) and 0 < alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
        if not good:
            self.fail(f"its alignment is {alignment!r}")
        data_start = -(-self.at // alignment) * alignment
        return metadata, self.place(raw_table, data_start)

    def tensor_header(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string(MAX_NAME_BYTES)
        num_dims = self.scalar(4)
        if not 1 <= num_dims <= MAX_DIMS:
            self.fail(f"tensor {name!r} has {num_dims} dimensions")
        shape = tuple(self.scalar(10) for _ in range(num_dims))
        return name, self.scalar(4), shape, self.scalar(10)

    def place(self, raw_table: list[tuple[str, int, tuple[int, ...], int]], data_start: int) -> dict[str, _TensorEntry]:
        """Turn headers into byte ranges, each checked to lie inside the file."""
        table: dict[str, _TensorEntry] = {}
        for name, type_id, shape, offset in raw_table:
            if type_id not in GGML_TYPES:
                known = ", ".join(entry[0] for entry in GGML_TYPES.values())
                self.fail(f"tensor {name!r} has unknown type {type_id}", f"Types that are read: {known}.")
            _, block_weights, block_bytes = GGML_TYPES[type_id]
            count = math.prod(shape)
            if count == 0 or shape[0] % block_weights:
                self.fail(f"tensor {name!r} has shape {shape}, which its type cannot hold")
            size_bytes = count // block_weights * block_bytes
            if data_start + offset + size_bytes > self.size:
                self.fail(f"it ends inside tensor {name!r}", "The file is cut short; fetch it again.")
            if name in table:
                self.fail(f"tensor {name!r} occurs twice")
            table[name] = _TensorEntry(
                ggml_type=type_id, shape=shape, offset=data_start + offset, size_bytes=size_bytes
            )
        return table

    def value(self, type_id: int, key: str) -> Any:
        if type_id == _STRING:
            return self.string(self.size)
        if type_id != _ARRAY:
            return self.scalar(type_id)
        element_type, count = self.scalar(4), self.scalar(10)
        if MAX_ITEMS < count <= self.size:
            self.fail(f"{key!r} has {count} items; {MAX_ITEMS} are allowed")
        if element_type == _STRING:
            return self.strings(count)
        if element_type not in _SCALARS:
            self.fail(f"{key!r} is an array of type {element_type}")
        kind = _SCALARS[element_type]
        self.need(count * kind.size)
        values = [item[0] for item in kind.iter_unpack(self.data[self.at : self.at + count * kind.size])]
        self.at += count * kind.size
        return values

    def strings(self, count: int) -> list[str]:
        self.need(count * 8)
        data, at, size, unpack = self.data, self.at, self.size, _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                length = unpack(data, at)[0]
                at += 8
                if length > size - at:
                    self.fail("a string of its header runs past the end of the file")
                found.append(data[at : at + length].decode("utf-8"))
                at += length
        except (struct.error, UnicodeDecodeError):
            self.fail("its header holds a broken string")
        self.at = at
        return found

    def string(self, limit_bytes: int) -> str:
        length = self.scalar(10)
        if length > limit_bytes:
            self.fail(f"its header claims a name of {length} bytes")
        self.need(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("its header holds a string that is not UTF-8")

    def scalar(self, type_id: int) -> Any:
        kind = _SCALARS.get(type_id)
        if kind is None:
            self.fail(f"its header holds a value of unknown type {type_id}")
        self.need(kind.size)
        value = kind.unpack_from(self.data, self.at)[0]
        self.at += kind.size
        return value

    def need(self, num_bytes: int) -> None:
        if num_bytes > self.size - self.at:
            self.fail("its header runs past the end of the file", "The file is cut short; fetch it again.")

    def fail(self, why: str, next_step: str = "The file is damaged or of another kind; fetch it again.") -> NoReturn:
        raise ModelError(f"Cannot read {self.path} as GGUF: {why}.", next_step)
