"""What is each part worth? The local column without one of its parts, each a column of its own.

Nothing is fitted anew for a column, so that only the part itself is missing: a confidence that leant on it is judged as
it is. Without the adapter the model is asked in full, as any model that was not taught is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from midwatch.copilot.triage import Options


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part that can be left out. `adapter` is False where the weights answer without the adapter."""

    about: str
    without: Callable[[Options], Options]
    adapter: bool = True


PARTS: Mapping[str, Part] = {
    "no-adapter": Part(
        about="the base model as it is",
        without=lambda options: replace(options, taught=False),
        adapter=False,
    ),
    "no-rules": Part(about="the model alone decides", without=lambda options: replace(options, rules=False)),
    "no-samples": Part(about="no short draws beside the answer", without=lambda options: replace(options, samples=0)),
    "no-calibration": Part(about="a plain product of the voices", without=lambda o: replace(o, calibrations={})),
}
"""Columns beside `local`, which has everything."""
