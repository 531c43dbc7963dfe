"""Checkpoints that are whole or not there: a list of files and hashes is written last, and read first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from midwatch.errors import TuningError

MANIFEST = "midwatch-checkpoint.json"
_PREFIX = "checkpoint-"


def seal(folder: Path) -> None:
    """Say that a checkpoint is whole: its files' hashes, written under another name and then renamed."""
    files = {item.name: _sha256(item) for item in sorted(folder.iterdir()) if item.is_file() and item.name != MANIFEST}
    temporary = folder / f"{MANIFEST}.new"
    temporary.write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    temporary.rename(folder / MANIFEST)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError):
        return f"its {MANIFEST} cannot be read"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != digest:
            return f"{name} is damaged"
    return ""


def latest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run, or None if there is none at all; `warn` hears of damaged ones.

    Raises `TuningError` if there are checkpoints and all are damaged.
    """
    found = sorted(
        (item for item in folder.glob(f"{_PREFIX}*") if item.name.removeprefix(_PREFIX).isdigit()),
        key=step_of,
        reverse=True,
    )
    wrong = []
    for item in found:
        reason = damage(item)
        if not reason:
            return item
        wrong.append(f"{item.name}: {reason}")
        warn(f"{item} is left aside: {reason}.")
    # The first checkpoint of a run that was killed while writing it is no loss: the run simply begins again.
    if wrong and any("not written to its end" not in text for text in wrong):
        raise TuningError(
            f"No checkpoint in {folder} is whole ({'; '.join(wrong)}).",
            "Begin again without --resume, in another --out.",
        )
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
