"""What surrounds a failing step? The log of a job of continuous integration: set-up, other steps, the end.

A job has one writer, so that nothing is interleaved; steps come one after the other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from midwatch.foundry.bank import Entry
from midwatch.foundry.collectors import Collector, Voice
from midwatch.foundry.names import Printing
from midwatch.foundry.neighbours import chatter
from midwatch.foundry.recording import Recording
from midwatch.foundry.said import Role, Said, Stage
from midwatch.foundry.shapes import stamp
from midwatch.foundry.split import Part, part_of
from midwatch.foundry.stories import Story

_WHOLE_LINES = 70
"""A shorter log is an excerpt: it has no beginning and no end of a job."""
_COMMANDS = (
    "make {?check|test|build|all}",
    "./scripts/{?ci|build|test|check}.sh",
    "{?npm|yarn|pnpm} run {?build|test|lint}",
    "{?cargo|go|mvn|gradle|tox} {?test|build|check}",
    "{?bazel|nox|just} {?test|build} //{service}/...",
)


def job(story: Story, stage: Stage, healthy: Sequence[Recording | Entry], room: int, part: Part | None) -> list[Said]:
    """The lines of a job in which a story happens, in order; about `room` lines besides the story's own."""
    source = stage.source
    system = _system(stage, part)
    voice = stage.voice("runner", "runner")
    at = story.lines[0].at - source.uniform(40, 1200)
    told = Printing(stage.cast, source, {"exit": str(source.choice((1, 1, 1, 2, 101, 127, 137)))})
    writer = _Writer(voice, stage, at)
    whole = room + len(story.lines) >= _WHOLE_LINES
    if whole:
        writer.write(system["begin"], told, "before")
    end: list[str] = list(system["end"]) if whole or source.random() < 0.3 else []
    room -= len(writer.said) + len(end)
    while room > 0:
        before = len(writer.said)
        _step(writer, stage, healthy, system, min(room, source.choice((8, 30, 120, 600))))
        room -= max(1, len(writer.said) - before)
    if whole or source.random() < 0.4:
        command = Printing(stage.cast, source).fill(source.choice(_COMMANDS), at)
        writer.write([line.replace("{command}", command) for line in system["run"]], told, "before")
    writer.take(story.lines)
    if whole or source.random() < 0.6:
        writer.write(system["failed"], told, "symptom")
    writer.write(end, told, "symptom")
    return writer.said


def collector_for(stage: Stage) -> Collector:
    """How a job's log is written: with the time of each line, as GitHub does, or without."""
    timed = stage.source.random() < 0.7
    return lambda voice, level, text, at: f"{stamp(at, digits=7)} {text}" if timed else text


class _Writer:
    """Lines of a job, each later than the one before."""

    def __init__(self, voice: Voice, stage: Stage, at: float) -> None:
        self._voice = voice
        self._stage = stage
        self._at = at
        self.said: list[Said] = []

    def write(self, texts: Sequence[str], printing: Printing, role: Role) -> None:
        for text in texts:
            self._at += 10 ** self._stage.source.uniform(-4, 0.2)
            filled = printing.fill(text, self._at)
            self.said.append(self._line(filled, "info", role))

    def take(self, lines: Sequence[Said]) -> None:
        """Lines that have their own distances in time."""
        last = lines[0].at
        for said in lines:
            self._at += min(max(0.0, said.at - last), 90.0) + 1e-5
            last = said.at
            said.at = said.breath = self._at
            said.voice = self._voice
            self.said.append(said)

    def _line(self, text: str, level: str, role: Role) -> Said:
        return Said(at=self._at, voice=self._voice, say=lambda at: text, level=level, role=role, breath=self._at)


def _step(
    writer: _Writer, stage: Stage, healthy: Sequence[Recording | Entry], system: dict[str, Any], count: int
) -> None:
    """A step that went well: of a healthy program, or one that every job knows."""
    source = stage.source
    filler = source.choice(_texts()["filler"])
    real = bool(healthy) and source.random() < 0.6
    command = source.choice(_COMMANDS) if real else filler["command"]
    told = Printing(stage.cast, source)
    run = [line.replace("{command}", told.fill(command, 0.0)) for line in system["run"]]
    if count > 20:
        writer.write(run, told, "healthy")
    if real:
        moments = [float(number) for number in range(count)]
        said = chatter(source.choice(healthy), stage, moments)
        for line in said:
            line.at *= 0.05
        writer.take(said)
        return
    writer.write(filler["head"], told, "healthy")
    some = source.sample(filler["many"], source.randint(1, len(filler["many"])))
    for _ in range(count):
        writer.write([source.choice(some)], Printing(stage.cast, source, _names(stage)), "healthy")


def _names(stage: Stage) -> dict[str, str]:
    """Names that differ from line to line in what a tool lists."""
    from midwatch.foundry.pools import MAKERS

    return {kind: MAKERS[kind](stage.source) for kind in ("pkg", "func", "test", "file")}


def _system(stage: Stage, part: Part | None) -> dict[str, Any]:
    """A CI system that this part may meet: those of no other part, the plain ones most often."""
    systems: dict[str, dict[str, Any]] = _texts()["system"]
    own = [
        system
        for system in systems.values()
        if part_of(system["family"]) != "train" and part in (None, part_of(system["family"]))
    ]
    draw = stage.source.random()
    if own and draw < 0.25:
        return stage.source.choice(own)
    return systems["github-actions" if draw < 0.8 else "plain"]


@lru_cache(maxsize=1)
def _texts() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("ci.toml").read_text(encoding="utf-8"))
