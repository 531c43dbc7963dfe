"""How is it broken? One file per family of programs; each lists its faults in `FAULTS`."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass

from midwatch.foundry.place import Place
from midwatch.foundry.recording import Recording


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A way to break a program. `record` breaks it in a place, with what it varies drawn from the random source.

    `needs` are commands that must be installed. `record` ends within about ten seconds and leaves nothing running.
    """

    name: str
    program: str
    category: str
    needs: tuple[str, ...]
    record: Callable[[Place, random.Random], Recording]


def all_faults() -> tuple[Fault, ...]:
    """Every fault of every file here, by name."""
    found: list[Fault] = []
    for module in pkgutil.iter_modules(__path__):
        found += importlib.import_module(f"{__name__}.{module.name}").FAULTS
    return tuple(sorted(found, key=lambda fault: fault.name))
