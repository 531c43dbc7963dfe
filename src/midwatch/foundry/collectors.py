"""How does a line arrive? What log collectors write before and around the lines of many programs in one stream.

A collector is chosen once for an incident. `CI` is apart: a job's log has one writer and no neighbours.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from midwatch.foundry.shapes import month_day, stamp

ALONE = "raw"
"""The collector that adds nothing, so that one cannot tell programs apart: for few programs."""


@dataclass(kw_only=True, slots=True)
class Voice:
    """One program of an incident, as a collector knows it.

    `own` says that it is a team's own service, no product. `skew_s` is how far its host's clock is ahead.
    """

    service: str
    program: str
    host: str
    pod: str
    namespace: str
    pid: int
    own: bool = True
    skew_s: float = 0.0


Collector = Callable[[Voice, str, str, float], str]
"""Makes a line of (voice, level, text, moment)."""


def collector(name: str, source: random.Random) -> Collector:
    """A collector by name. Raises `KeyError` for one that is not in `COLLECTORS`."""
    return COLLECTORS[name](source)


def _raw(source: random.Random) -> Collector:
    return lambda voice, level, text, at: text


def _syslog(source: random.Random) -> Collector:
    priority = source.random() < 0.3
    iso = source.random() < 0.3

    def write(voice: Voice, level: str, text: str, at: float) -> str:
        start = f"<{24 + _SEVERITY[level]}>" if priority else ""
        when = stamp(at, digits=6, zone="+00:00") if iso else month_day(at)
        tag = "kernel" if voice.program == "kernel" else f"{voice.program}[{voice.pid}]"
        return f"{start}{when} {voice.host.split('.')[0]} {tag}: {text}"

    return write


def _rfc5424(source: random.Random) -> Collector:
    def write(voice: Voice, level: str, text: str, at: float) -> str:
        return f"<{128 + _SEVERITY[level]}>1 {stamp(at)} {voice.host} {voice.program} {voice.pid} - - {text}"

    return write


def _journal(source: random.Random) -> Collector:
    def write(voice: Voice, level: str, text: str, at: float) -> str:
        tag = "kernel" if voice.program == "kernel" else f"{voice.program}[{voice.pid}]"
        return f"{stamp(at, digits=0, zone='+0000')} {voice.host.split('.')[0]} {tag}: {text}"

    return write


def _compose(source: random.Random) -> Collector:
    width = source.choice((14, 18, 22, 26))
    numbered = source.random() < 0.6
    timed = source.random() < 0.2

    def write(voice: Voice, level: str, text: str, at: float) -> str:
        name = f"{voice.service}-1" if numbered else voice.service
        when = f"{stamp(at, digits=9)} " if timed else ""
        return f"{name:<{width}}| {when}{text}"

    return write


def _kubectl(source: random.Random) -> Collector:
    prefixed = source.random() < 0.7
    timed = source.random() < 0.6 or not prefixed

    def write(voice: Voice, level: str, text: str, at: float) -> str:
        start = f"[pod/{voice.pod}/{voice.service}] " if prefixed else ""
        return f"{start}{stamp(at, digits=9) + ' ' if timed else ''}{text}"

    return write


def _stern(source: random.Random) -> Collector:
    spaced = source.random() < 0.5

    def write(voice: Voice, level: str, text: str, at: float) -> str:
        return f"{voice.pod} {voice.service} {text}" if spaced else f"{voice.namespace}/{voice.pod}: {text}"

    return write


def _cri(source: random.Random) -> Collector:
    named = source.random() < 0.6

    def write(voice: Voice, level: str, text: str, at: float) -> str:
        stream = "stderr" if level in ("error", "fatal", "warn") else "stdout"
        return f"{voice.pod + ': ' if named else ''}{stamp(at, digits=9)} {stream} F {text}"

    return write


def _docker_json(source: random.Random) -> Collector:
    def write(voice: Voice, level: str, text: str, at: float) -> str:
        stream = "stderr" if level in ("error", "fatal", "warn") else "stdout"
        value = {"log": text + "\n", "stream": stream, "attrs": {"tag": voice.service}, "time": stamp(at, digits=9)}
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    return write


def _store_json(source: random.Random) -> Collector:
    style = source.randrange(3)

    def write(voice: Voice, level: str, text: str, at: float) -> str:
        if style == 0:
            pod = {"pod_name": voice.pod, "namespace_name": voice.namespace, "container_name": voice.service}
            value: dict[str, object] = {"@timestamp": stamp(at), "message": text, "kubernetes": pod}
        elif style == 1:
            value = {
                "timestamp": stamp(at),
                "host": voice.host,
                "service": voice.service,
                "status": level,
                "message": text,
            }
        else:
            value = {"ts": stamp(at), "app": voice.service, "pod": voice.pod, "level": level, "msg": text}
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    return write


def _labelled(source: random.Random) -> Collector:
    """Loki's `logcli` with labels, or a column of service names."""
    style = source.randrange(2)

    def write(voice: Voice, level: str, text: str, at: float) -> str:
        if style == 0:
            return f'{stamp(at, digits=0)} {{app="{voice.service}", pod="{voice.pod}"}} {text}'
        return f"{stamp(at, between=' ', zone='')} {voice.service:<22} {text}"

    return write


COLLECTORS: dict[str, Callable[[random.Random], Collector]] = {
    "raw": _raw,
    "syslog": _syslog,
    "rfc5424": _rfc5424,
    "journal": _journal,
    "compose": _compose,
    "kubectl": _kubectl,
    "stern": _stern,
    "cri": _cri,
    "docker-json": _docker_json,
    "store-json": _store_json,
    "labelled": _labelled,
}
WEIGHTS: dict[str, int] = {
    "raw": 22,
    "syslog": 14,
    "rfc5424": 4,
    "journal": 12,
    "compose": 12,
    "kubectl": 11,
    "stern": 6,
    "cri": 6,
    "docker-json": 3,
    "store-json": 6,
    "labelled": 4,
}
"""How often each collector is met."""
OF_SYSLOG = frozenset(("syslog", "rfc5424", "journal"))
"""Collectors that write host and program before each line, so that a program need not."""
OF_MACHINES = OF_SYSLOG | {"raw", "store-json", "labelled"}
"""Collectors of what is no container: the kernel, the node's services, the cluster's control plane."""
_SEVERITY = {"fatal": 2, "error": 3, "warn": 4, "info": 6, "debug": 7}
