# ruff: noqa: E501 - a pattern is easier to read on one line
"""What does a line say about itself? Level, time, host, program and message, from the shapes that logs come in.

Cheap on purpose (a few microseconds a line): one pass for the prefix, one look for the level. A line of no known shape
is all message. JSON is read only when a line starts with a brace and is short enough. Nothing here raises on any text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from midwatch.copilot.structured import LEVELS, Level, json_fields, logfmt_fields

_NESTING = 2
"""Structured lines within structured lines (Docker's JSON holds the program's own) are read so deep."""
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
_COLLECTORS: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        r"^\[pod/(?P<host>[\w.-]{1,120})/(?P<program>[\w.-]{1,80})\] ",  # kubectl logs --prefix
        r"^(?P<program>[A-Za-z0-9][\w.-]{0,60})\s*\| ",  # docker compose
        r"^(?P<host>(?P<program>[a-z][a-z0-9-]{0,60}?)-[a-z0-9-]{1,40}) (?P=program) ",  # stern: pod, container
        r"^[a-z0-9-]{1,60}/(?P<host>[a-z0-9][a-z0-9.-]{1,100}): ",  # stern: namespace/pod
        r"^(?P<host>[a-z0-9][a-z0-9.-]{1,100}): (?=\d{4}-\d\d-\d\dT\S{8,30} std(?:out|err) [FP] )",  # pod: CRI
        r"^(?:stdout|stderr) [FP] ",  # CRI
        r"^\{(?:\w{1,30}=\"(?P<program>[^\"]{0,80})\"(?:, ?)?)(?:\w{1,30}=\"(?P<host>[^\"]{0,120})\"(?:, ?)?)?(?:\w{1,30}=\"[^\"]{0,120}\"(?:, ?)?){0,8}\} ",  # logcli
        r"^(?P<program>[A-Za-z_][\w./@+-]{0,60})\[\d+\]: ",
        r"^(?:\[\d+(?:-\d+)?\]:?|\[ ?\d+ ?\]|\d+:[A-Z](?= )|\d+#\d+:)\s*",  # a process's number
        r"^(?:\[?(?:\w{1,10}=(?:\[unknown\])?,){2,8}\w{1,10}=(?:\[unknown\])?\]? |\[unknown\]@\[unknown\] |\(\):@:\[\d+\]:\s*)",  # nobody
    )
)
_COLUMN = re.compile(r"^(?P<program>[a-z][\w.-]{1,60}) {2,}(?=\S)")
"""A column of names, as after a collector's time."""
_OTHER_TIMES: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        r"^(?:-|[A-Z]\w{0,20})? ?(?P<time>\d{10}) \d{4}[.-]\d\d[.-]\d\d (?P<host>\S{1,60}) \d{4}-\d\d-\d\d-[\d.:]{8,20} \S{1,60} ",  # Blue Gene
        r"^(?P<time>\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) +\d+ +\d+ (?P<level>[VDIWEF]) ",  # Android's logcat
        r"^(?P<time>\d{6} \d{6}) \d+ (?=[A-Z]+ )",  # Hadoop's short times
        r"^\[(?P<time>\d\d:\d\d:\d\d(?:\.\d{1,7})?) (?P<level>[A-Z]{3})\] ",  # Serilog's console
    )
)
_AGE = re.compile(r"^(?:[a-z0-9-]{1,60} +)?(?:\d{1,4}[smhd]){1,3}(?: \(x\d+ over \w+\))? +(?=Normal|Warning)")
"""How long ago a Kubernetes event was."""
_LEVEL = re.compile(
    r"\b(?:(TRACE|DEBUG|DBG|VRB)|(INFO|NOTICE|LOG|INF)|(WARN(?:ING)?|WRN)|(ERR(?:OR)?|SEVERE)|(FATAL|CRIT(?:ICAL)?|EMERG(?:ENCY)?|ALERT|PANIC|FTL))\b(?!=)"
)
_LEVEL_LOWER = re.compile(
    r"(?:[\[<](?:\w{1,20}:)?|level=\"?|lvl=\"?|severity=\"?|##\[|\t| )"
    r"(?:(trace|debug)|(information|info|notice|log)|(warn(?:ing)?)|(err(?:or)?|severe)|(fatal|crit(?:ical)?|emerg|alert|panic))(?:\]|>|\"|\b(?<=\w=\w{3})|\b(?<==\w{4})|\b(?<==\w{5})|\b(?<==\w{7})|/)"
    r"|^(?:[\w./-]+: )?(?:(?:fatal )?(?P<error>error|exception|fail)|(?P<warning>warning|warn)|(?P<critical>fatal|panic|crit))(?:\[\w+\])?: ",
    re.IGNORECASE,
)
_LEVEL_FIRST = re.compile(
    r"^(?:(trace|debug|dbug)|(info|normal(?= +[A-Z]))|(warn(?:ing)?)|(error)|(fatal|dpanic|panic|crit))(?:: |\s{1,4}(?=[\w/.-]+\.\w+:\d+\s|[A-Z]\w+\s|\S+/))",
    re.IGNORECASE,
)
"""A level in small letters at the very start, as zap's console, .NET's console and Kubernetes events have it."""
_ACCESS = re.compile(r"\" ([1-5]\d\d) (?:\d+|-)(?: |$)")
_LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error", "critical")
_KLOG_LEVELS: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_PEELS = 8
"""Prefixes that a line may have, one before the other."""


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
    return _parse_text(clean(clip(line, MAX_PARSED_CHARS)).rstrip(), 0)


def strip_time(text: str) -> str:
    """A line without what its collectors wrote before it, so that a pattern may ask for the line's beginning."""
    return _peel(text)[0]


def _parse_text(text: str, depth: int) -> Parsed:
    text, time, host, program, level = _peel(text)
    klog = _KLOG.match(text)
    if klog is not None:
        return Parsed(text[klog.end() :], _KLOG_LEVELS[klog[1]], klog[2], host, program or klog[3].split(":")[0])
    fields = json_fields(text) if text[:1] == "{" else None
    if fields is None and ("msg=" in text or "message=" in text):
        fields = logfmt_fields(text)
        level = find_level(text) or level
    if fields is None:
        return Parsed(text.strip(), find_level(text) or level, time, host, program)
    message = clean(fields.message).strip()
    inner = _parse_text(message, depth + 1) if depth < _NESTING else Parsed(message)
    more = clean(fields.more).strip()
    return Parsed(
        f"{inner.message} {more}".strip() if more and more not in inner.message else inner.message,
        inner.level or fields.level or level,
        time or fields.time or inner.time,
        host or inner.host or fields.host,
        program or inner.program or fields.program,
    )


def _peel(text: str) -> tuple[str, str, str, str, Level]:
    """A line's message without the prefixes of collectors and loggers; the time, host, program and level they give."""
    time = host = program = ""
    level: Level = ""
    text = text.lstrip(" ") if text[:1] == " " and _TIME.match(text) else text
    for _ in range(_PEELS):
        start = text
        priority = _PRIORITY.match(text) if text[:1] == "<" else None
        if priority is not None:
            level, text = _SYSLOG_LEVELS[int(priority[1]) % 8], text[priority.end() :]
        other = next((found for pattern in _OTHER_TIMES if (found := pattern.match(text))), None)
        stamp = _TIME.match(text) if other is None else None
        if other is not None:
            names = other.groupdict()
            time, host = time or other["time"], host or names.get("host") or ""
            level = LEVELS.get((names.get("level") or "").lower(), level)
            text = text[other.end() :]
        elif stamp is not None:
            time = time or stamp.group().strip(" []():,|-")
            text = text[stamp.end() :]
            named = _RFC5424.match(text) if priority is not None and priority[2] else _SYSLOG.match(text)
            named = named or _COLUMN.match(text)
            if named is not None and not _is_level(named[1]):
                last = named.lastindex or 1
                host, program = (host or named[1] if last > 1 else host), program or named[last]
                text = text[named.end() :]
        else:
            age = _AGE.match(text)
            text = text if age is None else text[age.end() :]
            for pattern in _COLLECTORS:
                found = pattern.match(text)
                if found is not None and not (found.groupdict().get("program") and _is_level(found["program"])):
                    names = found.groupdict()
                    host, program = host or names.get("host") or "", program or names.get("program") or ""
                    text = text[found.end() :]
                    break
        if text == start:
            break
    return text, time, host, program, level


def find_level(text: str) -> Level:
    """The level that a line states near its start, or the one its HTTP status implies; "" if it states none."""
    head = text[:90]
    match = _LEVEL_FIRST.match(head) or _LEVEL.search(head) or _LEVEL_LOWER.search(head)
    if match is not None:
        group = match.lastindex or 1
        return _LEVELS[group - 1] if group <= 5 else _LEVELS[{6: 3, 7: 2, 8: 4}[group]]
    access = _ACCESS.search(text) if '" ' in text else None
    if access is not None:
        return "error" if access[1][0] == "5" else "warning" if access[1][0] == "4" else "info"
    return ""


def _is_level(word: str) -> bool:
    return word.lower() in LEVELS and len(word) > 1
