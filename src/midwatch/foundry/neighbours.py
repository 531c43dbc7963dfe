"""What do the others say? Healthy programs around an incident, and dependents that feel it."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from midwatch.foundry.bank import Entry
from midwatch.foundry.collectors import Voice
from midwatch.foundry.names import Cast, Printing
from midwatch.foundry.pools import MAKERS
from midwatch.foundry.recording import Recording
from midwatch.foundry.replay import Playing, tape_of
from midwatch.foundry.said import Role, Said, Speech, Stage, messages
from midwatch.foundry.stories import LEVELS, player, speaker, voice_of

_FEELS: dict[str, str] = {
    "oom_memory": "down",
    "code_defect_crash": "down",
    "config_env_error": "down",
    "node_control_plane": "down",
    "deploy_regression": "failing",
    "disk_storage_full": "failing",
    "authn_authz": "failing",
    "tls_cert_expiry": "failing",
    "quota_rate_limit": "failing",
    "dns_resolution": "failing",
    "dependency_failure": "failing",
    "network_connectivity": "failing",
    "service_routing": "failing",
    "cpu_saturation": "slow",
    "database_slow_or_locked": "slow",
    "connection_exhaustion": "slow",
    "queue_backlog": "slow",
    "health_probe": "down",
}
"""What dependents feel of a cause; the other causes are felt by nobody who writes a log."""


def arrivals(source: random.Random, begin: float, end: float, count: int) -> list[float]:
    """Moments in a span, in order: at random, at a beat with jitter, or in bursts."""
    style = source.random()
    span = max(end - begin, 0.001)
    if style < 0.5:
        return sorted(begin + span * source.random() for _ in range(count))
    if style < 0.7:
        beat = span / max(count, 1)
        return sorted(begin + beat * (number + source.uniform(0.2, 0.8)) for number in range(count))
    centres = [begin + span * source.random() for _ in range(max(1, count // source.randint(4, 25)))]
    width = span / (8 * len(centres))
    return sorted(min(end, max(begin, source.gauss(source.choice(centres), width))) for _ in range(count))


def chatter(
    item: Recording | Entry, stage: Stage, moments: Sequence[float], *, voice: Voice | None = None
) -> list[Said]:
    """What a healthy program says at some moments (about a line each), in another voice if one is given."""
    if isinstance(item, Recording):
        return _played(item, stage, moments, voice)
    return _spoken(item, stage, moments, voice)


def _played(recording: Recording, stage: Stage, moments: Sequence[float], voice: Voice | None) -> list[Said]:
    tape = tape_of(recording)
    renamed = stage.names_for(recording)
    playing = Playing(tape, renamed, stage.source)
    number = stage.source.randrange(len(tape.lines))
    first, last = round(0.3 * len(tape.lines)), max(round(0.9 * len(tape.lines)), 1)
    said: list[Said] = []
    last_breath, breath = -1, 0.0
    for moment in moments:
        line = tape.lines[number]
        if line.breath != last_breath:
            last_breath, breath = line.breath, moment
        speaks = voice or voice_of(line.source, recording, stage)
        say = player(playing, line)
        level = LEVELS[line.level]
        said.append(Said(at=breath, voice=speaks, say=say, level=level, role="healthy", breath=breath))
        number += 1
        if number >= last:  # once more without its beginning and its end, which would be restarts
            number, last_breath = first, -1
            playing = Playing(tape, renamed, stage.source)
    return said


def _spoken(entry: Entry, stage: Stage, moments: Sequence[float], voice: Voice | None) -> list[Said]:
    cast = Cast(stage.source) if voice is None else stage.cast
    speech = speaker(entry, stage, cast) if voice is None else Speech(stage, voice, stage.source.choice(entry.shape))
    texts = messages(entry.lines if entry.kind == "healthy" else entry.before)
    number = stage.source.randrange(len(texts))
    in_order = stage.source.random() < 0.3
    said: list[Said] = []
    for moment in moments:
        if len(said) >= len(moments):
            break
        message = texts[number % len(texts)] if in_order else stage.source.choice(texts)
        printing = Printing(cast, stage.source, {} if voice is None else {"host": voice.host})
        said += speech.lines(message, moment, level="info", role="healthy", printing=printing)
        number += 1
    return said


def felt(category: str) -> bool:
    """Whether dependents feel a cause."""
    return category in _FEELS


def consequences(category: str, failing: str, stage: Stage, moments: Sequence[float]) -> list[Said]:
    """What one dependent of a failing service says. Raises `KeyError` for a cause that no dependent feels."""
    return _about(_FEELS[category], failing, stage, moments, "consequence")


def recovery(failing: str, stage: Stage, moments: Sequence[float]) -> list[Said]:
    """What a dependent says when a service is back."""
    return _about("recovered", failing, stage, moments, "recovery")


def _about(group: str, failing: str, stage: Stage, moments: Sequence[float], role: Role) -> list[Said]:
    source = stage.source
    language = source.choice(tuple(_SHAPES))
    texts = _texts()[group]
    known = texts[language] if language == "access" else [*texts[language], *texts["any"]]
    chosen = source.sample(known, min(len(known), source.choice((1, 1, 2, 3))))
    program = "nginx" if language == "access" else "java"
    voice = stage.voice(f"dependent {len(stage.voices)}", program)
    speech = Speech(stage, voice, source.choice(_SHAPES[language]))
    given: Mapping[str, str] = {"service": failing, "port": str(source.choice((80, 8080, 9090, 5000, 3000, 443)))}
    said: list[Said] = []
    for moment in moments:
        own = {**given, "table": MAKERS["table"](source)} if language == "access" else given
        printing = Printing(stage.cast, source, own)
        said += speech.lines([source.choice(chosen)], moment, level="error", role=role, printing=printing)
    return said


@lru_cache(maxsize=1)
def _texts() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads(Path(__file__).with_name("consequences.toml").read_text(encoding="utf-8"))


_SHAPES: dict[str, tuple[str, ...]] = {
    "java": ("java", "java", "json"),
    "python": ("python", "python", "json"),
    "go": ("go", "json", "logfmt"),
    "any": ("json", "logfmt", "dotnet", "python", "java"),
    "access": ("access",),
}
"""Who feels it: programs of a language, of any, or a web server; and how such a one may write."""
