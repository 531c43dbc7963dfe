"""What happened? A recording or an entry of the bank, told as lines at moments, with what is true about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from midwatch.foundry import bank, slots
from midwatch.foundry.bank import Entry
from midwatch.foundry.collectors import Voice
from midwatch.foundry.names import Cast, Printing
from midwatch.foundry.pools import listed
from midwatch.foundry.recording import Recording
from midwatch.foundry.replay import Part, Playing, TapeLine, named_parts, tape_of
from midwatch.foundry.said import OWN, Role, Said, Speech, Stage

CI_PREFIX = "ci_"
_OF_JOBS = frozenset(
    listed("""
    github-actions gitlab-ci jenkins circleci buildkite github-runner npm yarn pnpm pip cargo gradle maven go-test
    pytest jest vitest mocha karma cypress playwright selenium unittest doctest googletest catch2 ctest xctest
    scalatest behave robot newman pact tox bazel flutter
    """)
)
"""Programs that run in jobs only."""
LEVELS = {"critical": "fatal", "error": "error", "warning": "warn", "info": "info", "debug": "debug", "": "info"}
"""The levels of the copilot's parser, in a printer's words."""


@dataclass(kw_only=True)
class Story:
    """One thing that happened. `broke_at` and `ended_at` are moments; `ended_at` is None where it went on.

    `voice` is who failed, `services` are those that the story names, `alerts` are (title, message) that fired for it.
    """

    category: str
    program: str
    fault: str
    voice: Voice
    lines: list[Said]
    broke_at: float
    ended_at: float | None = None
    entity: str = ""
    severity: str = "high"
    cause: str = ""
    accepted: tuple[str, ...] = ()
    templated: bool = False
    language: str = "en"
    ci: bool = False
    services: tuple[str, ...] = ()
    alerts: list[tuple[str, str]] = field(default_factory=list)


def category_of(item: Recording | Entry) -> str:
    """The category of a recording or an entry; that of a false alarm is the benign one."""
    return bank.FALSE_ALARM if item.kind == "false_alarm" else item.category


def in_ci(item: Recording | Entry) -> bool:
    """Whether it happened in a job of continuous integration."""
    if item.category.startswith(CI_PREFIX) or item.program in _OF_JOBS:
        return True
    return isinstance(item, Entry) and "gha" in item.shape


def tell(item: Recording | Entry, stage: Stage, at: float, *, limit: int, lasts_s: float) -> Story:
    """Tell a recording or an entry from a moment on: in at most about `limit` lines, in about that time."""
    if isinstance(item, Recording):
        return _of_recording(item, stage, at, limit, lasts_s)
    return _of_entry(item, stage, at, limit, lasts_s)


def _of_recording(recording: Recording, stage: Stage, at: float, limit: int, lasts_s: float) -> Story:
    tape = tape_of(recording)
    renamed = stage.names_for(recording)
    kept = window(tape.lines, limit)
    moments = stretched([line.at for line in kept], stage.source, at, lasts_s)
    voices = {who: voice_of(who, recording, stage) for who in dict.fromkeys(x.source for x in kept)}
    playing = Playing(tape, renamed, stage.source)
    begins: dict[int, float] = {}
    lines = [
        Said(
            at=moment,
            voice=voices[line.source],
            say=player(playing, line),
            level=LEVELS[line.level],
            role=_role(recording, line),
            breath=begins.setdefault(line.breath, moment),
        )
        for line, moment in zip(kept, moments, strict=True)
    ]
    title, message = (_swapped(text, renamed) for text in (recording.alert_title, recording.alert_message))
    return Story(
        category=category_of(recording),
        program=recording.program,
        fault=recording.fault,
        voice=next((said.voice for said in lines if said.role == "truth"), lines[0].voice),
        lines=lines,
        broke_at=_moment(kept, lines, recording.broke_at or 0.0) or lines[0].at,
        ended_at=None if recording.mended_at is None else _moment(kept, lines, recording.mended_at),
        entity=_swapped(recording.entity, renamed),
        severity=recording.severity,
        cause=_swapped(recording.cause, renamed),
        accepted=recording.accepted,
        templated=recording.templated,
        ci=in_ci(recording),
        services=tuple(renamed[old] for old, kind in recording.names.items() if kind == "service" and old in renamed),
        alerts=[(title, message)] if title else [],
    )


def _of_entry(entry: Entry, stage: Stage, at: float, limit: int, lasts_s: float) -> Story:
    source = stage.source
    speech = speaker(entry, stage, stage.cast)
    told = Printing(stage.cast, source)
    lines: list[Said] = []
    for _ in range(_cycles(entry, source, limit)):
        lines += speech.say(entry.before, at, role="before", level="info", printing=Printing(stage.cast, source))
        at = lines[-1].at + source.uniform(0.02, 0.4) * lasts_s
    broke = at
    lines += speech.say(entry.scary, at, role="symptom", level="warn", printing=told)
    level = "info" if entry.kind == "false_alarm" else "error"
    repeats = _repeats(entry, source, limit - len(lines))
    for number in range(repeats):
        if lines and (number or entry.scary):
            at = lines[-1].at + source.uniform(0.2, 1.8) * max(1.0, lasts_s / (repeats + 1))
        printing = Printing(stage.cast, source) if number else told
        lines += speech.say(entry.lines, at, role="truth", level=level, printing=printing, tells=entry.tells)
        after = lines[-1].at + 10 ** source.uniform(-2, 1.3)
        lines += speech.say(entry.symptoms, after, role="symptom", level=level, printing=printing)
    entity, cause, *alerts = (told.fill(text, broke) for text in (entry.entity, entry.cause, *entry.alert))
    return Story(
        category=category_of(entry),
        program=entry.program,
        fault=entry.where.replace(".toml", ""),
        voice=speech.voice,
        lines=lines,
        broke_at=broke,
        entity=entity,
        severity=entry.severity,
        cause=cause,
        accepted=entry.accepted,
        templated=True,
        language=entry.language,
        ci=in_ci(entry) and speech.shape in ("gha", "plain"),
        alerts=[(title, "") for title in alerts],
    )


def speaker(entry: Entry, stage: Stage, cast: Cast) -> Speech:
    """How an entry's program speaks here. A service that the entry is about has the name that the cast gives it."""
    shape = stage.source.choice(entry.shape)
    named = {name for text in (*entry.lines, entry.entity, entry.source) for _, name in slots.kinds_in(text)}
    host = cast.name("host") if "host" in named else cast.name("node") if "node" in named else ""
    program = Printing(cast, stage.source).fill(entry.source, 0.0) or entry.program
    is_named = bool(named & {"service", "pod", "container"}) and (entry.program in OWN or "{service}" in entry.source)
    service = cast.name("service") if is_named and (not entry.source or "{" in entry.source) else ""
    return Speech(stage, stage.voice(f"{entry.where}/{service or program}", program, service, host), shape)


def _cycles(entry: Entry, source: random.Random, limit: int) -> int:
    """How often a program says what it says before: once in a short log."""
    return 0 if not entry.before else 1 if limit < 40 else source.choice((1, 1, 2, 3))


def _repeats(entry: Entry, source: random.Random, room: int) -> int:
    """How often the telling lines come: once for most, many times for what is tried again and again."""
    size = len(entry.lines) + len(entry.symptoms)
    if entry.kind == "false_alarm" or in_ci(entry) or source.random() < 0.55:
        return 1
    most = max(1, min(40, room // (2 * size)))
    return source.randint(1, source.choice((2, 4, 8, most)) if most > 8 else most)


def window(lines: Sequence[TapeLine], limit: int) -> list[TapeLine]:
    """At most about `limit` lines: those that are nearest to the telling ones, whole breaths, in order."""
    if len(lines) <= limit:
        return list(lines)
    telling = [number for number, line in enumerate(lines) if line.truth] or [len(lines) // 2]
    first = telling[0]
    telling = telling[: max(1, limit * 2 // 3)]
    distance = [
        min(abs(number - other) for other in telling) if number >= first else (first - number) * 0.5
        for number in range(len(lines))
    ]
    kept = sorted(sorted(range(len(lines)), key=lambda number: distance[number])[:limit])
    breaths = {lines[number].breath for number in kept}
    return [line for line in lines if line.breath in breaths][: limit + 60]


def stretched(moments: Sequence[float], source: random.Random, at: float, lasts_s: float) -> list[float]:
    """Recorded moments from `at` on, in about `lasts_s`: short gaps as they were, longer ones stretched with jitter."""
    factor = min(300.0, max(0.5, lasts_s / max(moments[-1] - moments[0], 1.0)))
    out: list[float] = []
    last = moments[0]
    for moment in moments:
        gap = max(0.0, moment - last)
        at += gap if gap < 0.05 else gap * factor * source.uniform(0.6, 1.5)
        out.append(at)
        last = moment
    return out


def player(playing: Playing, line: TapeLine) -> Callable[[float], str]:
    """What says a line of a tape."""
    return lambda at: playing.text(line, at)


def voice_of(who: str, recording: Recording, stage: Stage) -> Voice:
    """The voice of a source of a recording: under its new name where it has one, else on the host that is named."""
    renamed = stage.names_for(recording)
    hosts = [renamed[name] for name, kind in recording.names.items() if kind == "host" and name in renamed]
    host = hosts[0] if len(hosts) == 1 and who not in renamed else ""
    return stage.voice(f"{recording.id}/{who}", who, renamed.get(who, ""), host)


def _role(recording: Recording, line: TapeLine) -> Role:
    if line.truth:
        return "truth"
    if recording.broke_at is None or line.at < recording.broke_at:
        return "before"
    return "recovery" if recording.mended_at is not None and line.at >= recording.mended_at else "symptom"


def _moment(kept: Sequence[TapeLine], lines: Sequence[Said], at: float) -> float | None:
    return next((said.at for line, said in zip(kept, lines, strict=True) if line.at >= at), None)


def _swapped(text: str, renamed: Mapping[str, str]) -> str:
    return "".join(
        renamed[part.text] if isinstance(part, Part) else part for part in named_parts(text, tuple(sorted(renamed)))
    )
