"""What differs between languages, and how the scenes of a language become faults."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from midwatch.foundry.faults import Fault
from midwatch.foundry.place import Place
from midwatch.foundry.props import Certificate, Dependency, dependency
from midwatch.foundry.recording import Recording
from midwatch.foundry.services.service import Runtime, Service, service
from midwatch.foundry.services.supervisor import Supervisor


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A fault in the program that an order with these `fields` brings out, and the error printed (a pattern)."""

    fields: Mapping[str, object]
    error: str
    job: bool = False


@dataclass(frozen=True, kw_only=True)
class Release:
    """A new version: `after` in place of `before` in a source file, and the error that it prints at once (pattern)."""

    file: str
    before: str
    after: str
    error: str
    at_start: bool = False


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What differs between languages. `patterns` say how its runtime words each trouble; `settings` are bad settings
    with what is printed about them (None: the setting is missing). `tight_memory` wraps a command and gives
    environment, `roomy` lifts the runtime's own limit of memory; `group_mb` is a control group that it just fits in."""

    runtime: Runtime
    patterns: Mapping[str, str]
    defects: Sequence[Defect]
    releases: Sequence[Release]
    settings: Sequence[tuple[str, str | None, str]]
    tight_memory: Callable[[Service], tuple[Callable[[Sequence[str]], list[str]], dict[str, str]]]
    heavy: Callable[[random.Random], str]
    slow_search: Callable[[random.Random], str]
    open_files: int
    group_mb: int
    styles: tuple[str, ...] = ("supervisord", "kubelet", "keeper")
    tls_settings: Callable[[Certificate], dict[str, str]] = lambda made: {
        "TLS_CERT": str(made.cert),
        "TLS_KEY": str(made.key),
    }
    roomy: Callable[[Sequence[str]], list[str]] = list
    user_command: Callable[[Service], list[str]] = lambda service: service.command


Scene = Callable[[Service, Kit], Recording]
Scenes = Mapping[str, tuple[str, Scene, tuple[str, ...]]]
"""Name: category (empty: healthy), how it is done, and what it needs besides the language."""


def calm(service: Service, *, least: float = 0.5, most: float = 1.4) -> None:
    """Good traffic for a drawn time."""
    service.traffic().send(service.rng, service.rng.uniform(least, most))


def with_dependency(service: Service, stack: ExitStack) -> Dependency:
    """Give the service a dependency that works, for as long as the stack is open."""
    served = stack.enter_context(dependency())
    service.depends_on(served.port)
    return served


def supervised(service: Service, kit: Kit, start: Callable[[], subprocess.Popen[bytes]]) -> Supervisor:
    """A supervisor of the service, of a kind that the language is run by."""
    return Supervisor(
        place=service.place,
        rng=service.rng,
        name=service.name,
        style=service.rng.choice(kit.styles),
        start=start,
    )


def faults_of(kit: Kit, scenes: Scenes, needs: tuple[str, ...]) -> list[Fault]:
    """The scenes, done with a kit, as faults."""

    def fault(name: str, category: str, scene: Scene, more: tuple[str, ...]) -> Fault:
        full = f"{kit.runtime.family}-{name}"

        def record(place: Place, rng: random.Random) -> Recording:
            made = scene(service(place, rng, kit.runtime), kit)
            return replace(made, fault=full, id=full)

        return Fault(name=full, program=kit.runtime.family, category=category, needs=(*needs, *more), record=record)

    return [fault(name, *scene) for name, scene in scenes.items()]
