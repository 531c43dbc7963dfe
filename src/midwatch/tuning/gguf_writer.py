"""A GGUF file, written one tensor at a time: whole under its name, or not there.

Quantizing is the `gguf` library's, whose blocks are llama.cpp's bit by bit. Norms and biases stay float32, as llama.cpp
wants them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midwatch.engine.download import Tools, disk_errors, need_space, rename_durably
from midwatch.errors import TuningError

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import torch

_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor that is yet to be written: `kind` is a GGML type, `read` gives its numbers in float32."""

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], torch.Tensor]


def write_file(
    target: Path,
    architecture: str,
    metadata: Mapping[str, str | float | int | bool | Sequence[Any]],
    tensors: Sequence[PlannedTensor],
    tools: Tools,
) -> Path:
    """Write a file; whole numbers become uint32, as llama.cpp reads them. Returns `target`.

    Raises `TuningError` if `target` is there already, or a tensor holds what its type cannot; `DownloadError` for a
    full disk.
    """
    import gguf

    if target.exists():
        raise TuningError(f"{target} is there already.", "Remove it, or name another file.")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        total_bytes = sum(_bytes(item) for item in tensors)
        need_space(target.parent, total_bytes, tools)
        writer = gguf.GGUFWriter(part, architecture)
        try:
            for key, value in metadata.items():
                _add(writer, key, value)
            for item in tensors:
                kind = gguf.GGMLQuantizationType[item.kind]
                writer.add_tensor_info(item.name, item.shape, _float32(), _bytes(item), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            done = 0
            for values, item in _encoded(tensors):
                writer.write_tensor_data(values)
                done += _bytes(item)
                tools.progress("exporting", done, total_bytes)
            writer.close()
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            rename_durably(part, target)
        finally:
            writer.close()
            part.unlink(missing_ok=True)
    return target


def _encoded(tensors: Sequence[PlannedTensor]) -> Iterator[tuple[np.ndarray[Any, Any], PlannedTensor]]:
    import gguf
    import torch

    for item in tensors:
        values = item.read()
        largest = float(values.abs().max())
        if not math.isfinite(largest) or (item.kind not in {"F32", "BF16"} and largest > _FLOAT16_MAX):
            raise TuningError(
                f"{item.name} holds {largest:g}, which {item.kind} cannot.",
                "Look at the run that made these weights, or export BF16.",
            )
        if item.kind == "BF16":  # the library rounds as torch does, ten times slower
            yield values.to(torch.bfloat16).view(torch.uint8).numpy(), item
        else:
            yield gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[item.kind]), item


def _bytes(item: PlannedTensor) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[item.kind]]
    if item.shape[-1] % block:
        raise TuningError(
            f"{item.name} has rows of {item.shape[-1]} numbers; {item.kind} wants a multiple of {block}.",
            "Export F16 or BF16.",
        )
    return math.prod(item.shape) // int(block) * int(size)


def _float32() -> np.dtype[Any]:
    import numpy as np

    return np.dtype(np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)
