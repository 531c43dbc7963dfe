"""What do the fields of a structured line mean? JSON and logfmt lines to one message with level, time and names.

Every framework calls its fields otherwise; the names here are those of the common loggers and collectors (zap, logrus,
pino, bunyan, structlog, Serilog, log4j's and ECS layouts, MongoDB, journald, Docker, Fluent Bit, GELF, the clouds').
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Level = Literal["", "debug", "info", "warning", "error", "critical"]

LEVELS: dict[str, Level] = {
    **dict.fromkeys(
        ("trace", "debug", "verbose", "dbg", "vrb", "trc", "fine", "finer", "finest", "d", "v", "10", "20"), "debug"
    ),
    **dict.fromkeys(("info", "information", "informational", "inf", "notice", "log", "normal", "i", "30"), "info"),
    **dict.fromkeys(("warn", "warning", "wrn", "w", "40"), "warning"),
    **dict.fromkeys(("err", "error", "severe", "e", "50", "failure"), "error"),
    **dict.fromkeys(
        ("fatal", "crit", "critical", "emerg", "emergency", "alert", "panic", "dpanic", "ftl", "f", "60"), "critical"
    ),
}
"""Level words and numbers (pino's and bunyan's) of structured lines."""
_SYSLOG_NUMBERS: tuple[Level, ...] = ("critical", "critical", "critical", "error", "warning", "info", "info", "debug")
_MESSAGE = (
    "message",
    "msg",
    "@m",
    "@mt",
    "log",
    "event",
    "body",
    "text",
    "short_message",
    "renderedmessage",
    "messagetemplate",
    "textpayload",
    "errormessage",
    "note",
)
_LEVEL = (
    "level",
    "severity",
    "lvl",
    "levelname",
    "log.level",
    "severity_text",
    "severitytext",
    "loglevel",
    "@l",
    "priority",
    "s",
    "type",
)
_TIME = ("timestamp", "time", "ts", "@timestamp", "@t", "datetime", "date", "t", "eventtime")
_PROGRAM = (
    "service",
    "app",
    "application",
    "syslog_identifier",
    "container_name",
    "container",
    "tag",
    "component",
    "logger",
    "name",
    "source",
    "sourcecontext",
    "c",
)
_HOST = ("host", "hostname", "pod", "pod_name", "node", "_hostname", "instance", "computer")
_MORE = (
    "error",
    "err",
    "exception",
    "@x",
    "stack",
    "stacktrace",
    "stack_trace",
    "reason",
    "cause",
    "status",
    "code",
    "errorcode",
    "errormessage",
    "detail",
    "details",
    "attr",
)
_NESTED = (
    "kubernetes",
    "attrs",
    "resource",
    "jsonpayload",
    "protopayload",
    "fields",
    "involvedobject",
    "involved_object",
    "error",
    "err",
)
"""Objects whose fields count like the line's own."""
_MAX_MORE_CHARS = 300
_LOGFMT_MESSAGE = re.compile(r"(?:^|[\s{,])(?:msg|message)=(\"(?:[^\"\\]|\\.){0,3000}\"|\S+)")
_LOGFMT_EXTRA = re.compile(
    r"(?:^|\s)(\w{0,20}(?:err|error|reason|cause|status|code|exception)|service|component|app|host|node|pod|container|name|namespace|user|db|database|job|queue|topic|bucket|path|url|target|upstream|cluster)=(\"(?:[^\"\\]|\\.){0,600}\"|[^\s\"]\S*)"
)
_LOGFMT_NAME = re.compile(r"(?:^|\s)(service|app|component|logger|container)=\"?([\w./-]{1,60})")
_LOGFMT_TIMES = re.compile(r"(?:^|\s)(?:ts|t|time|timestamp)=(?:\"[^\"]{0,40}\"|\S+)")


@dataclass(frozen=True, slots=True)
class Fields:
    """What a structured line says. `message` may hold a whole line of its own; `more` are further telling fields."""

    message: str
    more: str = ""
    level: Level = ""
    time: str = ""
    host: str = ""
    program: str = ""


def json_fields(text: str) -> Fields | None:
    """The fields of a line that is a JSON object with a message; None for any other."""
    try:
        data = orjson.loads(text)
    except (orjson.JSONDecodeError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    fields: dict[str, Any] = {str(key).lower(): value for key, value in data.items()}
    message = _first(fields, _MESSAGE)
    for name in _NESTED:
        inner = fields.get(name)
        if isinstance(inner, dict):
            for key, value in inner.items():
                fields.setdefault(str(key).lower(), value)
    message = message or _first(fields, _MESSAGE)
    if not message:
        return None
    more = " ".join(
        f"{key}={value[:_MAX_MORE_CHARS]}"
        for key in _MORE
        if (value := _text(fields.get(key)).strip()) and value != message
    )
    return Fields(
        message,
        more,
        _level(fields),
        _first(fields, _TIME)[:40],
        _first(fields, _HOST)[:80],
        _first(fields, _PROGRAM)[:60],
    )


def logfmt_fields(text: str) -> Fields | None:
    """The fields of a line of `key=value` words with a message; None for any other."""
    match = _LOGFMT_MESSAGE.search(text)
    if match is None or len(match[1]) < 3:
        return None
    rest = f"{text[: match.start()]} {text[match.end() :]}"
    more = " ".join(f"{key}={value}" for key, value in _LOGFMT_EXTRA.findall(rest)[:5])
    quoted = match[1][0] == '"'
    words = match[1][1:-1].replace('\\"', '"') if quoted else match[1]
    name = _LOGFMT_NAME.search(rest)
    time = _LOGFMT_TIMES.search(rest)
    return Fields(words, more, "", time.group().strip()[:40] if time else "", "", name[2] if name else "")


def _level(fields: dict[str, Any]) -> Level:
    for key in _LEVEL:
        value = _text(fields.get(key)).strip().lower()
        if value.isdigit() and len(value) == 1:
            return _SYSLOG_NUMBERS[int(value)] if int(value) < 8 else ""
        if value in LEVELS and (len(value) > 1 or key == "s"):
            return LEVELS[value]
    return ""


def _first(fields: dict[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        found = _text(fields.get(key))
        if found:
            return found
    return ""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):  # {"error": {"message": ..., "code": ...}}
        return " ".join(str(part) for part in list(value.values())[:4] if isinstance(part, (str, int)))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return ""
