"""How does a program write its lines? The loggers of languages and servers, each in a few common settings.

A printer makes the line of a message from its level (`fatal`, `error`, `warn`, `info`, `debug`), the message and its
moment. Which setting it uses (field names, logger name, thread) is drawn once, when the printer is made.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from time import gmtime

from midwatch.foundry.times import MONTHS, fraction

Printer = Callable[[str, str, float], str]
MERGING = frozenset(("json", "logfmt"))
"""Shapes that put a whole stack trace into one line."""

POSTGRES_TITLES = ("LOG:", "ERROR:", "FATAL:", "PANIC:", "WARNING:", "DETAIL:", "HINT:", "STATEMENT:", "CONTEXT:")


@dataclass(frozen=True, kw_only=True)
class Who:
    """Who prints: the service, its program, host and process id. An empty host: the collector names it."""

    service: str
    program: str
    host: str
    pid: int


def stamp(at: float, *, day: str = "-", between: str = "T", dot: str = ".", digits: int = 3, zone: str = "Z") -> str:
    """A moment as `2026-03-15T03:12:44.123Z`, or with other separators."""
    parts = gmtime(at)
    rest = f"{dot}{fraction(at, digits)}" if digits else ""
    date = f"{parts.tm_year}{day}{parts.tm_mon:02d}{day}{parts.tm_mday:02d}"
    return f"{date}{between}{parts.tm_hour:02d}:{parts.tm_min:02d}:{parts.tm_sec:02d}{rest}{zone}"


def clock(at: float, digits: int = 3, dot: str = ".") -> str:
    """The clock of a moment, `03:12:44.123`."""
    parts = gmtime(at)
    rest = f"{dot}{fraction(at, digits)}" if digits else ""
    return f"{parts.tm_hour:02d}:{parts.tm_min:02d}:{parts.tm_sec:02d}{rest}"


def month_day(at: float) -> str:
    """A moment as syslog writes it: `Mar  5 03:12:44`."""
    parts = gmtime(at)
    return f"{MONTHS[parts.tm_mon - 1]} {parts.tm_mday:2d} {parts.tm_hour:02d}:{parts.tm_min:02d}:{parts.tm_sec:02d}"


def printer(shape: str, who: Who, source: random.Random) -> Printer:
    """A printer of a shape. Raises `KeyError` for a shape that is not in `SHAPES`."""
    return SHAPES[shape](who, source)


def _plain(who: Who, source: random.Random) -> Printer:
    return lambda level, message, at: message


def _klog(who: Who, source: random.Random) -> Printer:
    file = f"{source.choice(_GO_FILES)}.go:{source.randint(20, 1900)}"
    thread = source.choice((1, 1, 7, source.randint(100, 99_999)))

    def write(level: str, message: str, at: float) -> str:
        parts = gmtime(at)
        day = f"{parts.tm_mon:02d}{parts.tm_mday:02d} {clock(at, 6)}"
        own = _KLOG_FILE.match(message) is not None
        return f"{_KLOG_LETTER[level]}{day} {thread:7d} {'' if own else file + '] '}{message}"

    return write


def _json(who: Who, source: random.Random) -> Printer:
    style = source.randrange(6)
    compact = (",", ":") if source.random() < 0.7 else (", ", ": ")
    logger = _logger(who, source)

    def fields(level: str, message: str, at: float) -> dict[str, object]:
        if style == 0:
            return {"level": level, "ts": round(at, 6), "caller": f"{logger}.go:118", "msg": message}
        if style == 1:
            return {
                "level": _PINO[level],
                "time": int(at * 1000),
                "pid": who.pid,
                "hostname": who.host or who.service,
                "msg": message,
            }
        if style == 2:
            upper = level.upper() if level != "warn" else "WARNING"
            return {
                "timestamp": stamp(at, digits=6, zone="+00:00"),
                "level": upper,
                "logger": logger,
                "message": message,
            }
        if style == 3:
            name = {"service.name": who.service, "log.logger": logger}
            return {"@timestamp": stamp(at), "log.level": level.upper(), "message": message, **name}
        if style == 4:
            severity = {"warn": "WARNING", "fatal": "CRITICAL"}.get(level, level.upper())
            return {"severity": severity, "time": stamp(at, digits=9), "message": message, "service": who.service}
        return {"time": stamp(at, digits=0), "level": level, "msg": message, "service": who.service}

    return lambda level, message, at: json.dumps(fields(level, message, at), ensure_ascii=False, separators=compact)


def _logfmt(who: Who, source: random.Random) -> Printer:
    style = source.randrange(3)
    more = source.choice(("", f" service={who.service}", f" component={source.choice(_GO_FILES)}"))

    def write(level: str, message: str, at: float) -> str:
        quoted = message if message.isalnum() else json.dumps(message, ensure_ascii=False)
        if style == 0:
            return f'time="{stamp(at, digits=0)}" level={_LOGRUS.get(level, level)} msg={quoted}{more}'
        if style == 1:
            return f"ts={stamp(at)} caller={source.choice(_GO_FILES)}.go:88 level={level}{more} msg={quoted}"
        return f"time={stamp(at)} level={level.upper()} msg={quoted}{more}"

    return write


def _syslog(who: Who, source: random.Random) -> Printer:
    host = who.host.split(".", maxsplit=1)[0]
    if not host:
        return _plain(who, source)
    return lambda level, message, at: f"{month_day(at)} {host} {who.program}[{who.pid}]: {message}"


def _java(who: Who, source: random.Random) -> Printer:
    style = source.randrange(5)
    package = f"{source.choice(('com', 'io', 'org', 'net'))}.{source.choice(_FIRMS)}.{_plain_word(who.service)}"
    logger = f"{package}.{source.choice(_JAVA_CLASSES)}"
    short = ".".join(part[0] for part in package.split(".")) + "." + logger.rsplit(".", 1)[1]
    threads = source.choice(_JAVA_THREADS)

    def write(level: str, message: str, at: float) -> str:
        name = level.upper() if level != "fatal" else "ERROR"
        thread = threads.format(source.randint(1, 12))
        if style == 0:
            return f"{stamp(at, zone='Z')} {name:>5} {who.pid} --- [{thread[-15:]:>15}] {short:<40} : {message}"
        if style == 1:
            return f"{stamp(at, between=' ', dot=',', zone='')} {name:<5} [{thread}] {logger} - {message}"
        if style == 2:
            return f"{clock(at)} [{thread}] {name:<5} {logger} - {message}"
        if style == 3:
            return f"{stamp(at, between=' ', zone='')}  {name} {who.pid} --- [{thread}] {short} : {message}"
        return f"{name:<5} [{stamp(at, between=' ', dot=',', zone='')}] {logger}: {message}"

    return write


def _python(who: Who, source: random.Random) -> Printer:
    style = source.randrange(5)
    logger = _logger(who, source)

    def write(level: str, message: str, at: float) -> str:
        name = {"warn": "WARNING", "fatal": "CRITICAL"}.get(level, level.upper())
        if style == 0:
            return f"{stamp(at, between=' ', dot=',', zone='')} {name} {logger}: {message}"
        if style == 1:
            return f"{name}:{logger}:{message}"
        if style == 2:
            return f"[{stamp(at, between=' ', digits=0, zone=' +0000')}] [{who.pid}] [{name}] {message}"
        if style == 3:
            return f"{stamp(at, between=' ', zone='')} | {name:<8} | {logger}:handle:{57} - {message}"
        return f"{stamp(at, between=' ', dot=',', zone='')} - {logger} - {name} - {message}"

    return write


def _go(who: Who, source: random.Random) -> Printer:
    style = source.randrange(4)
    file = f"{source.choice(_GO_FILES)}.go:{source.randint(20, 700)}"

    def write(level: str, message: str, at: float) -> str:
        if style == 0:
            return f"{stamp(at, day='/', between=' ', digits=0, zone='')} {message}"
        if style == 1:
            return f"{stamp(at, zone='Z')}\t{level}\t{file}\t{message}"
        if style == 2:
            return f"{stamp(at, day='/', between=' ', digits=0, zone='')} {level.upper()} {message}"
        return f"{_LOGRUS.get(level, level).upper()[:4]}[{int(at) % 10_000:04d}] {message}"

    return write


def _dotnet(who: Who, source: random.Random) -> Printer:
    name = "".join(part.title() for part in who.service.split("-"))
    logger = f"{name}.{source.choice(('Controllers.ApiController', 'Services.Worker', 'Program', 'Data.Repository'))}"
    if source.random() < 0.5:
        return lambda level, message, at: f"{_DOTNET[level]}: {logger}[{0}] {message}"
    return lambda level, message, at: (
        f"{stamp(at, between=' ', zone=' +00:00')} [{_SERILOG[level]}] {message} <s:{logger}>"
    )


def _nginx(who: Who, source: random.Random) -> Printer:
    names = {"fatal": "emerg", "warn": "warn", "info": "notice", "debug": "notice", "error": "error"}

    def write(level: str, message: str, at: float) -> str:
        number = f" *{source.randint(100, 99_999)}" if level in ("error", "warn") else ""
        when = stamp(at, day="/", between=" ", digits=0, zone="")
        return f"{when} [{names[level]}] {who.pid}#{who.pid}:{number} {message}"

    return write


def _postgres(who: Who, source: random.Random) -> Printer:
    names = {"fatal": "FATAL", "error": "ERROR", "warn": "WARNING", "info": "LOG", "debug": "DEBUG"}
    session = source.choice(("", "", f" {_plain_word(who.service)}@{_plain_word(who.service)}"))

    def write(level: str, message: str, at: float) -> str:
        word, _, rest = message.partition(" ")
        title, said = (word, rest.strip()) if word in POSTGRES_TITLES else (names[level] + ":", message)
        pid = who.pid + int(at * 10) % 40
        return f"{stamp(at, between=' ', zone=' UTC')} [{pid}]{session} {title}  {said}"

    return write


def _kernel(who: Who, source: random.Random) -> Printer:
    booted = source.uniform(2_000, 9_000_000)
    if who.host and source.random() < 0.4:
        host = who.host.split(".")[0]
        return lambda level, message, at: f"{month_day(at)} {host} kernel: [{(at % 1e6) + booted:12.6f}] {message}"
    return lambda level, message, at: f"[{(at % 1e6) + booted:12.6f}] {message}"


def _event(who: Who, source: random.Random) -> Printer:
    style = source.randrange(4)

    def write(level: str, message: str, at: float) -> str:
        reason, _, rest = message.partition(" ")
        thing, _, words = rest.partition(" ")
        kind = "Normal" if level in ("info", "debug") else "Warning"
        if style == 0:
            ago = source.choice(
                (f"{source.randint(2, 59)}s", f"{source.randint(1, 58)}m", f"{source.randint(2, 9)}m12s")
            )
            return f"{ago:<11} {kind:<9} {reason:<20} {thing:<42} {words}"
        if style == 1:
            return f"{stamp(at, digits=0)}   {kind}   {reason}   {thing}   {words}"
        if style == 2:
            fields = {
                "type": kind,
                "reason": reason,
                "object": thing,
                "message": words,
                "lastTimestamp": stamp(at, digits=0),
            }
            return json.dumps(fields, ensure_ascii=False)
        return f'"Event occurred" object="{thing}" type="{kind}" reason="{reason}" message={json.dumps(words)}'

    return write


def _gha(who: Who, source: random.Random) -> Printer:
    return lambda level, message, at: message


def _plain_word(name: str) -> str:
    return "".join(letter for letter in name.split("-", maxsplit=1)[0] if letter.isalnum()) or "app"


def _logger(who: Who, source: random.Random) -> str:
    word = _plain_word(who.service)
    return source.choice(
        (f"{word}.{source.choice(_GO_FILES)}", word, f"app.{source.choice(_GO_FILES)}", "root", "main")
    )


SHAPES: dict[str, Callable[[Who, random.Random], Printer]] = {
    "plain": _plain,
    "access": _plain,
    "klog": _klog,
    "json": _json,
    "logfmt": _logfmt,
    "syslog": _syslog,
    "java": _java,
    "python": _python,
    "go": _go,
    "dotnet": _dotnet,
    "nginx": _nginx,
    "postgres": _postgres,
    "kernel": _kernel,
    "event": _event,
    "gha": _gha,
}
_KLOG_FILE = re.compile(r"[\w./-]+\.go:\d+\] ")
_KLOG_LETTER = {"fatal": "F", "error": "E", "warn": "W", "info": "I", "debug": "I"}
_PINO = {"fatal": 60, "error": 50, "warn": 40, "info": 30, "debug": 20}
_LOGRUS = {"warn": "warning"}
_DOTNET = {"fatal": "crit", "error": "fail", "warn": "warn", "info": "info", "debug": "dbug"}
_SERILOG = {"fatal": "FTL", "error": "ERR", "warn": "WRN", "info": "INF", "debug": "DBG"}
_FIRMS = ("acme", "globex", "initech", "northwind", "contoso", "kestrel", "oakline", "quarry")
_JAVA_CLASSES = (
    "OrderService",
    "ApiController",
    "JobRunner",
    "EventListener",
    "RestClient",
    "Repository",
    "Application",
)
_JAVA_THREADS = ("http-nio-8080-exec-{}", "main", "pool-2-thread-{}", "scheduling-{}", "ForkJoinPool-1-worker-{}")
_GO_FILES = ("server", "client", "handler", "worker", "reconciler", "store", "sync", "controller", "queue", "http")
