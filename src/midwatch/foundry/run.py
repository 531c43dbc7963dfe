"""Runs faults: each in a place of its own, several at the same time, with what each run brought."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

from midwatch.errors import FoundryError
from midwatch.foundry.faults import Fault
from midwatch.foundry.place import open_place
from midwatch.foundry.recording import Recording


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run brought: a recording, or in words why there is none."""

    fault: str
    seed: int
    recording: Recording | None = None
    error: str = ""


def record_all(faults: Iterable[Fault], seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """Run every fault with every seed, `jobs` at the same time; results come as they are ready."""
    wanted = [(fault, seed) for seed in seeds for fault in faults]
    with ThreadPoolExecutor(max_workers=jobs) as workers:
        running = [workers.submit(record_one, fault, seed) for fault, seed in wanted]
        for finished in as_completed(running):
            yield finished.result()


def record_one(fault: Fault, seed: int) -> Result:
    """Run a fault once. Whatever goes wrong in it becomes the result's error; nothing is left running."""
    try:
        with open_place() as place:
            recording = fault.record(place, random.Random(f"{fault.name}/{seed}"))
        _check(recording)
    except FoundryError as error:
        return Result(fault=fault.name, seed=seed, error=str(error))
    except Exception as error:
        return Result(fault=fault.name, seed=seed, error=f"{type(error).__name__}: {error}")
    return Result(fault=fault.name, seed=seed, recording=replace(recording, id=f"{fault.name}/{seed}"))


def _check(recording: Recording) -> None:
    if not recording.lines:
        raise FoundryError("Nothing was printed.")
    if recording.kind == "fault" and not any(line.truth for line in recording.lines):
        raise FoundryError("No line that was printed shows the cause.")
