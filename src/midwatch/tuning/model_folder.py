"""A folder in Hugging Face's layout, written so that it is either whole or not there.

Tensors are written as they come, in shards, so that no model lies in memory whole. `midwatch.json` is written last: it
says where the weights came from, and names every file with its size.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midwatch.engine.download import disk_errors, rename_durably
from midwatch.engine.safetensors_checkpoint import INDEX, read_json
from midwatch.errors import ModelError, TuningError

if TYPE_CHECKING:
    import torch

PROVENANCE = "midwatch.json"
FORMAT = 1
SHARD_BYTES = 2 << 30
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)


class TensorWriter:
    """Tensors into `model.safetensors`, or into shards with an index where they are more than `shard_bytes`."""

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._waiting_bytes = 0
        self._shards: list[list[str]] = []
        self.total_bytes = 0

    def add(self, name: str, values: torch.Tensor) -> None:
        """Take one tensor; it must not change afterwards."""
        if self._waiting and self._waiting_bytes + values.nbytes > self._shard_bytes:
            self._flush()
        self._waiting[name] = values.contiguous()
        self._waiting_bytes += values.nbytes
        self.total_bytes += values.nbytes

    def close(self) -> None:
        """Write what is left, and the index if there are several shards."""
        self._flush()
        count = len(self._shards)
        names = ["model.safetensors"] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in _up(count)]
        for index, name in enumerate(names):
            (self._folder / f"shard-{index}").rename(self._folder / name)
        if count > 1:
            weight_map = {tensor: name for name, held in zip(names, self._shards, strict=True) for tensor in held}
            write_json(self._folder / INDEX, {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map})

    def _flush(self) -> None:
        if not self._waiting:
            return
        from safetensors.torch import save_file

        save_file(self._waiting, self._folder / f"shard-{len(self._shards)}", metadata={"format": "pt"})
        self._shards.append(list(self._waiting))
        self._waiting, self._waiting_bytes = {}, 0


def _up(count: int) -> range:
    return range(1, count + 1)


@contextmanager
def new_folder(target: Path, provenance: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder beside `target` to write a model into; it takes that name at the end, if nothing failed.

    `provenance` goes into `midwatch.json`, with every file and its size. Raises `TuningError` if `target` is there
    already, `DownloadError` if the disk is full or not to be written to.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TuningError(f"{target} is there already.", "Remove it, or name another folder.")
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            yield part
            files = {item.name: item.stat().st_size for item in sorted(part.iterdir())}
            for name in files:
                (part / name).chmod(0o644)  # the safetensors library lets only the owner read
                _flush_to_disk(part / name)
            write_json(part / PROVENANCE, {"format": FORMAT, **provenance, "files": files})
            _flush_to_disk(part / PROVENANCE)
            part.chmod(0o755)
            if target.exists():
                target.rmdir()
            rename_durably(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """True if every file that the folder's `midwatch.json` names is there at its size."""
    try:
        files = read_json(folder / PROVENANCE)["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (ModelError, OSError, KeyError, AttributeError):
        return False


def provenance_of(folder: Path) -> dict[str, Any]:
    """What `midwatch.json` says of a folder; empty for a folder that Midwatch did not write."""
    path = folder / PROVENANCE
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON object as people read it."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
