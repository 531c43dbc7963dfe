"""Incidents out of recordings and the message bank: the same words in another place, at another time, among others.

Incident `i` of a seed depends only on the seed, `i` and what it is made of, so that any part can be made again alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from midwatch.copilot.model import Case
from midwatch.copilot.taxonomy import UNKNOWN, severity_of
from midwatch.foundry import recording as recordings_file
from midwatch.foundry import traits
from midwatch.foundry.alerts import alert_for
from midwatch.foundry.bank import Entry
from midwatch.foundry.draft import Draft, draft, written
from midwatch.foundry.incident import Incident, Truth
from midwatch.foundry.recording import Recording
from midwatch.foundry.shelves import Shelves
from midwatch.foundry.split import Part
from midwatch.foundry.stories import Story
from midwatch.foundry.traits import Written

SOURCE = "foundry"
SPOILED = {"ansi": 0.06, "binary": 0.03, "truncated": 0.05, "duplicates": 0.08}
"""How often each trait is given that is done to the written log."""
_BURST_LINES = 300


def make(
    seed: int, count: int, *, part: Part | None = None, recordings: Iterable[Recording], bank: Sequence[Entry]
) -> Iterator[Incident]:
    """Make incidents of the programs of a part (of all programs for None).

    Raises `FoundryError` where there is nothing to make them of.
    """
    shelves = Shelves(recordings, bank, part)
    for number in range(count):
        yield one(seed, number, shelves, part)


def one(seed: int, number: int, shelves: Shelves, part: Part | None = None) -> Incident:
    """Incident `number` of a seed."""
    source = random.Random(f"{seed}/{number}")
    made = draft(source, shelves.draw_category(source), shelves, part)
    alert = alert_for(made, must_fire=made.story is None or "two_faults" in made.traits)
    lines = written(made)
    _spoil(lines, made)
    case = Case(
        service=alert.service,
        title=alert.title,
        severity=alert.severity,
        message=alert.message,
        lines=tuple(line.text for line in lines),
    )
    return Incident(id=f"{seed}-{number:05d}", source=SOURCE, case=case, truth=_truth(made, lines))


def recorded(folder: Path | None = None) -> list[Recording]:
    """Every recording of a folder, or of those that Midwatch carries. Raises `FoundryError` for a damaged file."""
    if folder is None:
        with resources.as_file(resources.files("midwatch.foundry") / "recordings") as carried:
            return recorded(carried) if carried.is_dir() else []
    return [item for path in sorted(folder.glob("*.jsonl.gz")) for item in recordings_file.read(path)]


def twin(incident: Incident, seed: int, *, places: int = 1) -> Incident:
    """The same incident with text that argues for a wrong category inserted, written as the lines beside it are."""
    source = random.Random(f"twin/{seed}/{incident.id}")
    lines = incident.case.lines
    planted: list[tuple[int, str]] = []
    for _ in range(places):
        at = source.randint(0, len(lines))
        words = traits.argument(source, incident.truth.category)
        beside = lines[min(at, len(lines) - 1)] if lines else ""
        planted.append((at, traits.like(beside, words) if source.random() < 0.8 else words))
    return insert(incident, planted)


def insert(incident: Incident, planted: Sequence[tuple[int, str]]) -> Incident:
    """An incident with lines inserted, each before the line of that index; the truth's line numbers move along."""
    lines = [(text, number in incident.truth.lines) for number, text in enumerate(incident.case.lines, start=1)]
    for at, text in sorted(planted, key=lambda item: item[0], reverse=True):
        lines.insert(at, (text, False))
    numbers = frozenset(number for number, (_, telling) in enumerate(lines, start=1) if telling)
    marks = incident.truth.traits if "injected" in incident.truth.traits else (*incident.truth.traits, "injected")
    return replace(
        incident,
        id=f"{incident.id}-injected",
        case=replace(incident.case, lines=tuple(text for text, _ in lines)),
        truth=replace(incident.truth, lines=numbers, traits=marks),
    )


def _spoil(lines: list[Written], made: Draft) -> None:
    """What is done to a log on its way: colours, bursts, cut lines, bytes that are no text."""
    source = made.stage.source
    if len(lines) >= 3:
        for trait, share in SPOILED.items():
            if source.random() >= share:
                continue
            if trait == "ansi":
                traits.coloured(lines, source)
            elif trait == "binary":
                traits.noisy(lines, source)
            elif trait == "truncated":
                traits.truncated(lines, source)
            else:
                traits.repeated(lines, source, min(_BURST_LINES, len(lines)))
            made.traits.append(trait)
    if made.story is not None and made.story.language != "en":
        made.traits.append("other_language")


def _entities(made: Draft, story: Story, lines: Sequence[Written]) -> tuple[str, ...]:
    """Names of what is broken that the log or the alert shows; the failing program's own where its host is broken."""
    if not story.entity:
        return ()
    names = [story.entity, *made.stage.cast.aliases_of(story.entity)]
    if story.voice.host in names:
        names += [story.voice.service, story.voice.pod]
    log = "\n".join(line.text for line in lines)
    shown = [name for name in dict.fromkeys(names) if name in log]
    if not shown:
        shown = [name for name in (story.voice.service, story.voice.pod) if name in log]
    return tuple(shown)


def _truth(made: Draft, lines: Sequence[Written]) -> Truth:
    story = made.story
    if story is None:
        return Truth(category=UNKNOWN, severity=severity_of(UNKNOWN), traits=tuple(made.traits))
    return Truth(
        category=story.category,
        accepted=story.accepted,
        entities=_entities(made, story, lines),
        lines=frozenset(number for number, line in enumerate(lines, start=1) if line.role == "truth"),
        severity=story.severity,
        cause=story.cause,
        program=story.program,
        fault=story.fault,
        templated=story.templated,
        traits=tuple(made.traits),
    )
