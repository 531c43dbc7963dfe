"""How applications write their logs: five shapes that Python services use, chosen by name."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

STYLES = ("plain", "dashes", "brackets", "json", "logfmt")
_FORMATS = {
    "plain": "%(asctime)s %(levelname)s %(name)s: %(message)s",
    "dashes": "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
    "brackets": "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s",
}


class _Structured(logging.Formatter):
    """One object a line: JSON, or logfmt."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self._shape = style

    def format(self, record: logging.LogRecord) -> str:
        """A record with its exception as one field."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        level = {"WARNING": "warn"}.get(record.levelname, record.levelname.lower())
        fields = {"ts": stamp, "level": level, "logger": record.name, "msg": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            if self._shape == "json":
                fields["exc"] = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
            else:
                fields["err"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}".strip()
        if self._shape == "json":
            return json.dumps(fields)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


def _quoted(value: str) -> str:
    return value if value and not set(value) & set(' "=\n') else json.dumps(value, ensure_ascii=False)


def set_up(style: str, level: int) -> None:
    """Log to standard output in a shape of `STYLES`."""
    handler = logging.StreamHandler(sys.stdout)
    formatter = logging.Formatter(_FORMATS[style]) if style in _FORMATS else _Structured(style)
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])
