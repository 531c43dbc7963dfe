# ruff: noqa: E501 - a pattern is easier to read on one line
"""What does a line say about itself? Level, time, host, program and message, from the shapes that logs come in.

Cheap on purpose (a few microseconds a line): one pass for the prefix, one look for the level. A line of no known shape
is all message. JSON is read only when a line starts with a brace and is short enough. Nothing here raises on any text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Level = Literal["", "debug", "info", "warning", "error", "critical"]

MAX_PARSED_CHARS = 4_000
"""Longer lines are parsed by their first characters (and their end is kept in `clip`)."""

_ANSI = re.compile(r"\^\[\[[0-9;]{0,20}m|\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")
_TIME = re.compile(
    r"""^\s*(?:
      (?:\[(?:[a-z]{2,12}\s)?|\()?\d{4}[-/.]\d\d[-/.]\d\d[T _]\d\d:\d\d(?::\d\d)?(?:[.,]\d{1,9})?\s?(?:Z\b|[+-]\d\d:?\d\d\b|UTC\b|GMT\b|[A-Z]{2,3}T\b)?(?:\]|\))?
      | \[?(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\s+)?(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s+\d{1,2}\s\d\d:\d\d:\d\d(?:\.\d+)?(?:\s\d{4})?\]?
      | \[\d{1,2}/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?:\s[+-]\d{4})?\]
      | \d{1,2}\s(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s\d{4}\s\d\d:\d\d:\d\d(?:\.\d+)?
      | \[?\d\d:\d\d:\d\d(?:[.,]\d{1,9})?\]?(?=\s)
      | \d\d/\d\d/\d\d\s\d\d:\d\d:\d\d(?=\s)
      | \[\s*\d{1,9}\.\d{3,9}\]
      | \d{10}(?:\.\d{1,9}|\d{3})?(?=\s)
    )[\s:,|-]*""",
    re.VERBOSE,
)
_KLOG = re.compile(r"^([IWEF])(\d{4} \d\d:\d\d:\d\d\.\d+)\s+\d+ ([\w./-]+:\d+)\] ?")
_SYSLOG = re.compile(r"^([A-Za-z0-9][\w.:-]{0,80}) ([A-Za-z_][\w./@+-]{0,60})(?:\([\w.-]{1,30}\))?(?:\[\d+\])?: ")
_PRIORITY = re.compile(r"^<(\d{1,3})>(?:(1) )?")
_RFC5424 = re.compile(r"^(\S{1,255}) (\S{1,48}) \S{1,128} \S{1,32} (?:-|(?:\[[^\]]{0,500}\])+) ?")
_SYSLOG_LEVELS: tuple[Level, ...] = ("critical", "critical", "critical", "error", "warning", "info", "info", "debug")
_PROGRAM = re.compile(r"^([A-Za-z_][\w./@+-]{0,60})\[\d+\]: ")
_CONTAINER = re.compile(r"^([A-Za-z0-9][\w.-]{0,60})\s+\| ")
_CRI = re.compile(r"^(?:stdout|stderr) [FP] ")
_PID = re.compile(r"^(?:\[\d+\]|\d+:[A-Z](?= )|\d+#\d+:)\s*")
_LEVEL = re.compile(
    r"\b(?:(TRACE|DEBUG)|(INFO|NOTICE|LOG)|(WARN(?:ING)?)|(ERR(?:OR)?|SEVERE)|(FATAL|CRIT(?:ICAL)?|EMERG(?:ENCY)?|ALERT|PANIC))\b(?!=)"
)
_LEVEL_LOWER = re.compile(
    r"(?:\[|level=\"?|lvl=\"?|severity=\"?|##\[)"
    r"(?:(trace|debug)|(info|notice|log)|(warn(?:ing)?)|(err(?:or)?|severe)|(fatal|crit(?:ical)?|emerg|alert|panic))\b"
    r"|^(?:[\w./-]+: )?(?:(?:fatal )?(?P<error>error|exception)|(?P<warning>warning)|(?P<critical>fatal|panic))(?:\[\w+\])?: ",
    re.IGNORECASE,
)
_LOGFMT_MESSAGE = re.compile(r"\b(?:msg|message)=(\"(?:[^\"\\]|\\.){0,3000}\"|\S+)")
_LOGFMT_EXTRA = re.compile(
    r"\b(err|error|reason|cause|status|code|service|component|host|pod|caller)=(\"(?:[^\"\\]|\\.){0,600}\"|\S+)"
)
_ACCESS = re.compile(r"\" ([1-5]\d\d) (?:\d+|-)(?: |$)")
_LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error", "critical")
_KLOG_LEVELS: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_WORDS: dict[str, Level] = {
    "trace": "debug",
    "debug": "debug",
    "verbose": "debug",
    "info": "info",
    "information": "info",
    "notice": "info",
    "log": "info",
    "warn": "warning",
    "warning": "warning",
    "err": "error",
    "error": "error",
    "severe": "error",
    "fatal": "critical",
    "crit": "critical",
    "critical": "critical",
    "emerg": "critical",
    "alert": "critical",
    "panic": "critical",
    "dpanic": "critical",
}
_JSON_MESSAGE = ("message", "msg", "log", "event", "body", "text", "MESSAGE", "short_message")
_JSON_LEVEL = ("level", "severity", "lvl", "levelname", "log.level", "severity_text", "severityText", "loglevel", "@l")
_JSON_TIME = ("timestamp", "time", "ts", "@timestamp", "@t", "datetime", "date", "t")
_JSON_PROGRAM = (
    "service",
    "app",
    "application",
    "logger",
    "component",
    "name",
    "SYSLOG_IDENTIFIER",
    "container",
    "source",
)
_JSON_HOST = ("host", "hostname", "pod", "node", "_HOSTNAME", "instance")
_JSON_MORE = (
    "error",
    "err",
    "exception",
    "stack",
    "stacktrace",
    "stack_trace",
    "reason",
    "cause",
    "status",
    "code",
    "errorMessage",
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A line taken apart. `message` is free of terminal colours, prefix and control characters."""

    message: str
    level: Level = ""
    time: str = ""
    host: str = ""
    program: str = ""


def clip(text: str, limit: int) -> str:
    """Text of at most `limit` characters: the start, and of a longer one also the end, with an ellipsis between."""
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail - 3]} … {text[len(text) - tail :]}"


def clip_around(text: str, limit: int, at: int) -> str:
    """Text of at most `limit` characters: of a longer one the start and what stands around place `at`."""
    if len(text) <= limit or at < limit * 3 // 4:
        return clip(text, limit)
    head = limit // 3
    room = limit - head - 6
    start = max(head, min(at - room // 4, len(text) - room))
    end = start + room
    return f"{text[:head]} … {text[start:end]}{' …' if end < len(text) else ''}"


def clean(text: str) -> str:
    """Text without terminal colours and control characters (tabs become spaces)."""
    if "\x1b" in text or "^[[" in text:
        text = _ANSI.sub("", text)
    if not text.isprintable():
        text = _CONTROL.sub(" ", text).replace("\t", " ").replace("\n", " ")
    return text


def parse(line: str) -> Parsed:
    """Take one line apart. Never raises; an unknown shape is all message."""
    text = clean(clip(line, MAX_PARSED_CHARS)).rstrip()
    if text.lstrip()[:1] == "{":
        found = _parse_json(text)
        if found is not None:
            return found
    klog = _KLOG.match(text)
    if klog is not None:
        return Parsed(text[klog.end() :], _KLOG_LEVELS[klog[1]], klog[2], "", klog[3].split(":")[0])
    return _parse_text(text)


def _parse_text(text: str) -> Parsed:
    host = program = ""
    level: Level = ""
    priority = _PRIORITY.match(text)
    if priority is not None:
        level, text = _SYSLOG_LEVELS[int(priority[1]) % 8], text[priority.end() :]
    container = _CONTAINER.match(text) if "|" in text[:64] else None
    if container is not None:
        program, text = container[1], text[container.end() :]
    time, text = _strip_time(text)
    syslog = _SYSLOG.match(text) if time else None
    structured = _RFC5424.match(text) if priority is not None and priority[2] else None
    if structured is not None:
        host, program, text = structured[1], structured[2], text[structured.end() :]
    elif syslog is not None and not _is_level(syslog[1]):
        host, program, text = syslog[1], syslog[2], text[syslog.end() :]
    else:
        named = _PROGRAM.match(text)
        if named is not None:
            program, text = named[1], text[named.end() :]
    if program or text[:1] == "[":  # the program's own time, behind the collector's prefix
        own, text = _strip_time(text)
        time = time or own
    inner = _parse_json(text) if text[:1] == "{" else None
    if inner is not None:
        return Parsed(inner.message, inner.level, time or inner.time, inner.host or host, inner.program or program)
    level = find_level(text) or level
    if "msg=" in text or "message=" in text:
        return _parse_logfmt(text, level, time, host, program)
    return Parsed(text.strip(), level, time, host, program)


def strip_time(text: str) -> str:
    """A line without the times that it begins with, so that a pattern may ask for the line's beginning."""
    return _strip_time(text)[1]


def _strip_time(text: str) -> tuple[str, str]:
    """The time at the start of a text (a collector's may stand before the program's own), and the rest."""
    time = ""
    for _ in range(2):
        text = _PID.sub("", text, count=1)
        stamp = _TIME.match(text)
        if stamp is None:
            break
        time = time or stamp.group().strip(" []():,|-")
        text = text[stamp.end() :]
        if text[:3] == "std":
            text = _CRI.sub("", text, count=1)
    return time, _PID.sub("", text, count=1)


def find_level(text: str) -> Level:
    """The level that a line states near its start, or the one its HTTP status implies; "" if it states none."""
    head = text[:90]
    match = _LEVEL.search(head)
    if match is None:
        match = _LEVEL_LOWER.search(head)
    if match is not None:
        group = match.lastindex or 1
        return _LEVELS[group - 1] if group <= 5 else _LEVELS[{6: 3, 7: 2, 8: 4}[group]]
    access = _ACCESS.search(text) if '" ' in text else None
    if access is not None:
        return "error" if access[1][0] == "5" else "warning" if access[1][0] == "4" else "info"
    return ""


def _is_level(word: str) -> bool:
    return word.lower() in _WORDS


def _parse_logfmt(text: str, level: Level, time: str, host: str, program: str) -> Parsed:
    match = _LOGFMT_MESSAGE.search(text)
    if match is None or len(match[1]) < 3:
        return Parsed(text.strip(), level, time, host, program)
    rest = f"{text[: match.start()]} {text[match.end() :]}"
    extra = " ".join(f"{key}={value}" for key, value in _LOGFMT_EXTRA.findall(rest)[:4])
    quoted = match[1][0] == '"'
    words = match[1][1:-1].replace('\\"', '"') if quoted else match[1]
    message = f"{words} {extra}".strip()
    return Parsed(message, level, time, host, program)


def _parse_json(text: str, depth: int = 0) -> Parsed | None:
    try:
        data = orjson.loads(text)
    except (orjson.JSONDecodeError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    message = _first(data, _JSON_MESSAGE)
    if not message:
        return None
    if depth == 0 and message.lstrip()[:1] == "{":
        inner = _parse_json(message, 1)
        if inner is not None:
            return inner
    more = " ".join(
        f"{key}={clip(clean(value), 300)}" for key in _JSON_MORE if (value := _text(data.get(key))) and value != message
    )
    level = _WORDS.get(_first(data, _JSON_LEVEL).lower(), "") or find_level(message)
    message = clean(message).strip()
    return Parsed(
        f"{message} {more}".strip(),
        level,
        _first(data, _JSON_TIME)[:40],
        _first(data, _JSON_HOST)[:80],
        _first(data, _JSON_PROGRAM)[:60],
    )


def _first(data: dict[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        if key in data:
            found = _text(data[key])
            if found:
                return found
    return ""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):  # {"error": {"message": ..., "code": ...}}
        return " ".join(str(part) for part in list(value.values())[:3] if isinstance(part, (str, int)))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return ""
