"""What a GGUF file says of itself, read in milliseconds without touching its weights.

Layout (GGUF specification, versions 2 and 3, little-endian): magic `GGUF`, version u32, tensor count u64, pair count
u64; then pairs of key, type and value; then for every tensor its name, shape, type and offset; then, aligned, the data.
The file is a stranger's, so every count is checked against what is left of the file before anything is read.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

from midwatch.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
MAX_PAIRS = 10_000
MAX_TENSORS = 100_000
MAX_ARRAY = 10_000_000
MAX_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True)
class GgufFacts:
    """What `midwatch models list` shows of a file.

    `quantization` is the tensor type that holds the most parameters (`Q4_1`, `F16`, ...). `licence` is "" if unsaid.
    """

    architecture: str
    quantization: str
    licence: str
    parameters: int


def read_facts(path: Path) -> GgufFacts:
    """Read the header of a GGUF file and check that every tensor lies inside the file.

    Raises `ModelError` for a file that is no GGUF file, or is damaged, or was cut short.
    """
    try:
        with path.open("rb") as stream:
            return _Header(stream, path.stat().st_size).read()
    except (ValueError, struct.error, UnicodeDecodeError, MemoryError) as error:
        raise ModelError(f"{path} is not a whole GGUF file ({error}).", "Fetch it again.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from None


class _Header:
    """One pass over the header. Raises `ValueError` with the reason."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.stream = stream
        self.size = size

    def read(self) -> GgufFacts:
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in {2, 3}:
            raise ValueError(f"version {version} is not 2 or 3")
        tensors, pairs = self._count("Q", MAX_TENSORS), self._count("Q", MAX_PAIRS)
        said: dict[str, str | int] = {}
        for _ in range(pairs):
            key = self._text()
            value = self._value(self._number("I"))
            if value is not None:
                said[key] = value
        parameters: Counter[int] = Counter()
        end = 0
        for _ in range(tensors):
            type_id, count, offset = self._tensor()
            parameters[type_id] += count
            end = max(end, offset + _bytes_of(type_id, count))
        alignment = said.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise ValueError(f"alignment {alignment} is out of range")
        start = -(-self.stream.tell() // alignment) * alignment
        if start + end > self.size:
            raise ValueError(f"it should be {start + end} bytes long and has {self.size}")
        most = parameters.most_common(1)
        return GgufFacts(
            architecture=str(said.get("general.architecture", "")),
            quantization=_type_name(most[0][0]) if most else "",
            licence=str(said.get("general.license", "")),
            parameters=parameters.total(),
        )

    def _tensor(self) -> tuple[int, int, int]:
        """Type, number of parameters and offset of the next tensor."""
        self._text()
        dimensions = self._count("I", MAX_DIMENSIONS)
        count = prod(self._number("Q") for _ in range(dimensions))
        return self._number("I"), count, self._number("Q")

    def _value(self, type_id: int) -> str | int | None:
        """The value if it is a string or a u32; others are passed over."""
        if type_id == _STRING:
            return self._text()
        if type_id == _ARRAY:
            self._pass_array()
            return None
        if type_id not in _SCALARS:
            raise ValueError(f"value type {type_id} is unknown")
        value = self._number(_SCALARS[type_id])
        return value if type_id == _UINT32 else None

    def _pass_array(self) -> None:
        element, length = self._number("I"), self._count("Q", MAX_ARRAY)
        if element == _STRING:
            for _ in range(length):
                self._pass(self._number("Q"))
        elif element in _SCALARS:
            self._pass(length * struct.calcsize(_SCALARS[element]))
        else:
            raise ValueError(f"an array of type {element} is unknown")

    def _text(self) -> str:
        return self._bytes(self._number("Q")).decode("utf-8", "replace")

    def _count(self, code: str, limit: int) -> int:
        number = self._number(code)
        if number > limit:
            raise ValueError(f"a count of {number} is more than {limit}")
        return number

    def _number(self, code: str) -> int:
        layout = "<" + code
        value = struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]
        return int(value) if code not in "fd" else 0  # no float is looked at, and a NaN is no integer

    def _bytes(self, length: int) -> bytes:
        if length > self.size - self.stream.tell():
            raise ValueError("it ends inside its header")
        return self.stream.read(length)

    def _pass(self, length: int) -> None:
        if length > self.size - self.stream.tell():
            raise ValueError("it ends inside its header")
        self.stream.seek(length, 1)


def _type_name(type_id: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return str(GGMLQuantizationType(type_id).name)
    except ValueError:
        return f"type {type_id}"


def _bytes_of(type_id: int, count: int) -> int:
    """Bytes of `count` parameters of a tensor type; 0 for a type we do not know."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
    except (ValueError, KeyError):
        return 0
    return int(count // block * size)
