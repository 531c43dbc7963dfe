"""Which base an adapter was trained on: `base.json` beside it says so, and another base is refused.

Two folders are one base if their tensors have the same names and shapes, and either both come from the same file (its
SHA-256, so that a bfloat16 and a float32 conversion are one base), or the same bytes stand at the places that are
looked at. What it is not: a proof; a few rows of every tensor are read, so that 16 GB take a second.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.lora import read_adapter
from midwatch.engine.safetensors_checkpoint import open_files, read_json
from midwatch.errors import ModelError, TuningError
from midwatch.tuning.model_folder import provenance_of, write_json

BASE = "base.json"
SAMPLED_ROWS = 16
_SHOWN_HASH = 12


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A base: what people call it, the shapes of its tensors by name, a hash of what lies in them.

    `source_sha256` is the hash of the GGUF file that the folder was converted from, empty if it was not, or
    if an adapter has been merged into it since.
    """

    name: str
    source_sha256: str
    content_sha256: str
    shapes: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Match:
    """An adapter fits a base; `certain` is False where only shapes could be compared, and `what` says it."""

    certain: bool
    what: str


def fingerprint(base_dir: Path) -> Fingerprint:
    """Look at a folder of safetensors. Raises `ModelError` for one that is incomplete or damaged."""
    origin = provenance_of(base_dir)
    source = {} if "merged" in origin else origin.get("source", {})
    files, shapes, digest = open_files(base_dir), {}, hashlib.sha256()
    for name in sorted(files):
        part = files[name].get_slice(name)
        shape = list(part.get_shape())
        shapes[name] = shape
        digest.update(f"{name} {part.get_dtype()} {shape} ".encode())
        rows = shape[0] if shape else 0
        for row in sorted({index * (rows - 1) // (SAMPLED_ROWS - 1) for index in range(SAMPLED_ROWS)} if rows else ()):
            digest.update(_bytes(part[row : row + 1]))
    return Fingerprint(
        name=str(source.get("name") or base_dir.resolve().name),
        source_sha256=str(source.get("sha256", "")),
        content_sha256=digest.hexdigest(),
        shapes=shapes,
    )


def write(adapter_dir: Path, base_dir: Path) -> Fingerprint:
    """Say in `adapter_dir` which base an adapter belongs to, and return that."""
    found = fingerprint(base_dir)
    write_json(adapter_dir / BASE, asdict(found))
    return found


def check(adapter_dir: Path, base_dir: Path) -> Match:
    """Make sure that an adapter belongs to a base.

    Raises `TuningError` that names what differs, shapes or hash; `ModelError` for an adapter that is damaged or of a
    kind that is not read. An adapter from elsewhere has no `base.json`: only its own shapes are compared.
    """
    if not (adapter_dir / BASE).is_file():
        try:
            read_adapter(adapter_dir, open_checkpoint(base_dir).config, adapter_dir.name)
        except ModelError as error:
            raise TuningError(error.what, error.next_step) from None
        what = f"{adapter_dir} has no {BASE}, so only shapes were compared: the hash of its base is unknown."
        return Match(certain=False, what=what)
    trained, given = _read(adapter_dir / BASE), fingerprint(base_dir)
    _compare_shapes(adapter_dir, trained, given)
    if trained.source_sha256 and given.source_sha256:
        kind, one, other = "the file they were converted from", trained.source_sha256, given.source_sha256
    else:
        kind, one, other = "their tensors", trained.content_sha256, given.content_sha256
    if one != other:
        raise _other_base(
            adapter_dir, trained, given, f"the hash of {kind} is {one[:_SHOWN_HASH]} and {other[:_SHOWN_HASH]}"
        )
    return Match(certain=True, what=f"Trained on {trained.name}, hash {one[:_SHOWN_HASH]}.")


def _compare_shapes(adapter_dir: Path, trained: Fingerprint, given: Fingerprint) -> None:
    for name in sorted(trained.shapes.keys() | given.shapes.keys()):
        one, other = trained.shapes.get(name), given.shapes.get(name)
        if one != other:
            raise _other_base(adapter_dir, trained, given, f"{name} is {_shape(one)} and {_shape(other)}")


def _other_base(adapter_dir: Path, trained: Fingerprint, given: Fingerprint, what: str) -> TuningError:
    return TuningError(
        f"The adapter {adapter_dir} was trained on {trained.name} and not on {given.name}: {what}.",
        f"Use it with {trained.name}, or train one for {given.name}.",
    )


def _shape(shape: list[int] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape))


def _read(path: Path) -> Fingerprint:
    found: dict[str, Any] = read_json(path)
    shapes = found.get("shapes")
    texts = [found.get(key) for key in ("name", "source_sha256", "content_sha256")]
    if not isinstance(shapes, dict) or not all(isinstance(text, str) for text in texts):
        raise TuningError(f"{path} does not say which base it is about.", "Remove it to compare shapes only.")
    return Fingerprint(name=texts[0], source_sha256=texts[1], content_sha256=texts[2], shapes=shapes)  # type: ignore[arg-type]


def _bytes(values: Any) -> bytes:
    import torch

    raw: bytes = values.contiguous().view(torch.uint8).numpy().tobytes()
    return raw
