"""Which incidents? Names of sets, each an iterator of labelled incidents that is the same for the same arguments.

The foundry's sets are made from parts that are kept apart (`foundry/split.py`) and from seeds that no training uses.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

from midwatch.copilot.model import Case, Severity
from midwatch.errors import FoundryError
from midwatch.evaluation import public
from midwatch.foundry import incident as incidents
from midwatch.foundry.incident import Incident, Truth
from midwatch.foundry.split import Part

DEMO = Path("demo") / "incidents"
_SEVERITIES = {"critical": "critical", "page": "critical", "error": "high", "warning": "medium", "info": "info"}


@dataclass(frozen=True, kw_only=True)
class Foundry:
    """A set that the foundry makes. `count` is taken where none is asked for."""

    part: Part
    seed: int
    count: int
    about: str


FOUNDRY: dict[str, Foundry] = {
    "foundry-seeds": Foundry(part="train", seed=900_001, count=600, about="known programs, seeds never trained on"),
    "foundry-programs": Foundry(part="test", seed=900_002, count=600, about="programs never trained on"),
    "foundry-calibrate": Foundry(part="calibrate", seed=900_003, count=600, about="programs that fit confidence"),
}
ABOUT: dict[str, str] = {
    **{name: chosen.about for name, chosen in FOUNDRY.items()},
    "incidents": "every public case, by source",
    **dict.fromkeys(public.SOURCES, "public cases of one source"),
    "demo": "the twelve recordings of the demo",
}
"""The names of sets with what each holds; a path of a file of labelled incidents is a set too."""


def load(
    name: str, *, count: int | None = None, seed: int | None = None, data: Path | None = None, demo: Path = DEMO
) -> Iterator[Incident]:
    """The incidents of a set. `count` bounds it (or says how many to make), `seed` is for the foundry's sets only.

    `data` is the folder that has `incidents` in it. Raises `FoundryError` for a name that is neither a set nor a file.
    """
    if name in FOUNDRY:
        chosen = FOUNDRY[name]
        return _made(chosen.part, chosen.seed if seed is None else seed, count or chosen.count)
    if name == "demo":
        return islice(recordings(demo), count)
    if name == "incidents" or name in public.SOURCES:
        if data is None:
            raise FoundryError("There is no folder of public data.", "Set MIDWATCH_DATA, or give --data DIR.")
        sources = public.SOURCES if name == "incidents" else (name,)
        folder = data / "incidents"
        return islice((item for source in sources for item in public.read(folder, source)), count)
    if Path(name).is_file():
        return islice(incidents.read(Path(name)), count)
    raise FoundryError(f"{name} is neither a set nor a file.", f"The sets are {', '.join(ABOUT)}.")


def recordings(folder: Path) -> Iterator[Incident]:
    """The demo's own recordings, with the alert that came with each."""
    if not folder.is_dir():
        raise FoundryError(f"{folder} is not here.", "The demo's recordings come with a checkout; run from its root.")
    for place in sorted(folder.iterdir()):
        truth = tomllib.loads((place / "truth.toml").read_text(encoding="utf-8"))
        title = message = severity = ""
        if (place / "alert.json").exists():
            alert = json.loads((place / "alert.json").read_text(encoding="utf-8"))["alerts"][0]
            title, message = alert["labels"].get("alertname", ""), alert["annotations"].get("summary", "")
            severity = alert["labels"].get("severity", "")
        yield Incident(
            id=f"demo/{place.name}",
            source="demo",
            case=Case(
                service=truth.get("service", ""),
                title=title,
                message=message,
                severity=cast(Severity, _SEVERITIES.get(severity, "medium")),
                lines=tuple((place / "log.txt").read_text(encoding="utf-8").splitlines()),
            ),
            truth=Truth(
                category=truth["category"],
                accepted=(*truth.get("accepted", ()), *truth.get("alternatives", ())),
                entities=(truth["entity"],) if truth.get("entity") else (),
                lines=frozenset(truth.get("lines", ())),
                severity=truth.get("severity", ""),
                cause=truth.get("broken", ""),
            ),
        )


def _made(part: Part, seed: int, count: int) -> Iterator[Incident]:
    from midwatch.foundry import bank, compose

    return compose.make(seed, count, part=part, recordings=compose.recorded(), bank=bank.load())
