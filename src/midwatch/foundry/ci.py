"""What surrounds a failing step? The log of a job of continuous integration: set-up, other steps, the end.

A job has one writer, so that nothing is interleaved; steps come one after the other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from midwatch.foundry.bank import FALSE_ALARM, Entry
from midwatch.foundry.collectors import Collector, Voice
from midwatch.foundry.names import Printing
from midwatch.foundry.neighbours import chatter
from midwatch.foundry.pools import MAKERS
from midwatch.foundry.recording import Recording
from midwatch.foundry.said import Role, Said, Stage
from midwatch.foundry.shapes import stamp
from midwatch.foundry.split import Part, part_of
from midwatch.foundry.stories import Story

_WHOLE_LINES = 70
"""A shorter log is an excerpt: it has no beginning and no end of a job."""


def job(
    story: Story, stage: Stage, healthy: Sequence[Recording | Entry], room: int, part: Part | None
) -> tuple[list[Said], Collector]:
    """The lines of a job in which a story happens, in order, and how they are written.

    There are about `room` lines besides the story's own.
    """
    source = stage.source
    system = _system(story.program, stage, part)
    voice = stage.voice("runner", "runner")
    at = story.lines[0].at - source.uniform(40, 1200)
    told = Printing(stage.cast, source, {"exit": str(source.choice((1, 1, 1, 1, 2)))})
    writer = _Writer(voice, stage, at)
    whole = room + len(story.lines) >= _WHOLE_LINES
    if whole:
        writer.write(system["begin"], told, "before")
    passed = story.category == FALSE_ALARM
    end: list[str] = list(system["passed" if passed else "end"]) if whole or source.random() < 0.3 else []
    room -= len(writer.said) + len(end)
    while room > 0:
        before = len(writer.said)
        _step(writer, stage, healthy, system, min(room, source.choice((8, 30, 120, 600))))
        room -= max(1, len(writer.said) - before)
    if whole or source.random() < 0.4:
        writer.write(_run(system, _command(story.program, stage)), told, "before")
    writer.take(story.lines)
    if not passed and not _ends(story) and (whole or source.random() < 0.6):
        writer.write(system["failed"], told, "symptom")
    writer.write(end, told, "symptom")
    return writer.said, _collector(system, stage)


def _ends(story: Story) -> bool:
    """Whether a story itself says that its command failed."""
    return any(
        "exit code" in text or "exited with" in text for text in (said.say(said.at) for said in story.lines[-3:])
    )


def _collector(system: dict[str, Any], stage: Stage) -> Collector:
    """How a job's log is written: with the time of each line, as GitHub does, or without."""
    timed = system["timed"] and stage.source.random() < 0.75
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
    if healthy and source.random() < 0.6:
        item = source.choice(healthy)
        if count > 20:
            writer.write(_run(system, _command(item.program, stage)), Printing(stage.cast, source), "healthy")
        said = chatter(item, stage, [float(number) for number in range(count)])
        for line in said:
            line.at *= 0.05
        writer.take(said)
        return
    filler = source.choice(_texts()["filler"])
    if count > 20:
        writer.write(_run(system, filler["command"]), Printing(stage.cast, source), "healthy")
        writer.write(filler["head"], Printing(stage.cast, source), "healthy")
    some = source.sample(filler["many"], source.randint(1, len(filler["many"])))
    for number in range(1, count + 1):
        far = {"n": str(number), "n2": str(count), "pct": str(100 * number // count)}
        text = source.choice(some).replace("{item}", source.choice(filler["items"]))
        writer.write([text], Printing(stage.cast, source, {**far, **_names(stage)}), "healthy")


def _run(system: dict[str, Any], command: str) -> list[str]:
    """How a system announces a command."""
    return [line.replace("{command}", command) for line in system["run"]]


def _command(program: str, stage: Stage) -> str:
    """A command that runs a program in a job."""
    commands = _texts()["commands"]
    command = stage.source.choice(commands.get(program, commands["any"]))
    return Printing(stage.cast, stage.source).fill(command, 0.0)


def _names(stage: Stage) -> dict[str, str]:
    """Names that differ from line to line in what a tool lists."""
    return {kind: MAKERS[kind](stage.source) for kind in ("func", "test")}


def _system(program: str, stage: Stage, part: Part | None) -> dict[str, Any]:
    """A CI system that this part may meet: the program itself if it is one, else the plain ones most often."""
    systems: dict[str, dict[str, Any]] = _texts()["system"]
    if program in systems:
        return systems[program]
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
