"""When was it said? Moments in the forms that programs print them, and recorded moments moved to an incident's time.

A moment is seconds since the epoch, UTC.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Callable, Iterator, Mapping
from time import gmtime, strftime
from typing import TypeVar

_Made = TypeVar("_Made")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_ENOUGH_DATES = 60
_FAR_S = 400 * 86_400.0
"""A date farther from the line's own time than this is no time of the line (a constant, a date of birth)."""
_MONTH, _CLOCK = f"(?:{'|'.join(MONTHS)})", r"[0-2]\d:[0-5]\d:[0-6]\d"
_MOMENT = re.compile(
    rf"(?P<iso>(?<!\d)20\d\d[-/.][01]\d[-/.][0-3]\d[T _]{_CLOCK}(?:[.,]\d{{1,9}})?)"
    rf"|(?P<named>(?<!\d)[0-3]\d[/ ]{_MONTH}[/ ]20\d\d[: ]{_CLOCK}(?:\.\d{{1,6}})?)"
    rf"|(?P<month>(?:(?:{'|'.join(_DAYS)}) )?\b{_MONTH} [ 0-3]\d {_CLOCK}(?:\.\d{{1,6}})?(?: 20\d\d)?)"
    rf"|(?P<klog>(?<=\b[IWEF])[01]\d[0-3]\d {_CLOCK}\.\d{{6}})"
    r"|(?P<epoch>(?<![\d.\w-])1[6-9]\d{8}(?:\.\d{1,9}|\d{3}|\d{9})?(?![\d.\w-]))"
    rf"|(?P<clock>(?<![\d:.T-]){_CLOCK}(?:[.,]\d{{1,6}})?(?![\d:]))"
    r"|(?P<day>(?<![\d-])20\d\d-[01]\d-[0-3]\d(?![\d-]))"
)


def forms(at: float) -> dict[str, str]:
    """A moment in each form that a slot of the bank may ask for."""
    parts = gmtime(at)
    clock = strftime("%H:%M:%S", parts)
    day = strftime("%Y-%m-%d", parts)
    month = MONTHS[parts.tm_mon - 1]
    return {
        "iso": f"{day}T{clock}.{fraction(at, 3)}Z",
        "day": day,
        "clock": clock,
        "epoch": str(int(at)),
        "clf": f"{parts.tm_mday:02d}/{month}/{parts.tm_year}:{clock} +0000",
        "ctime": f"{_DAYS[parts.tm_wday]} {month} {parts.tm_mday:2d} {clock} {parts.tm_year}",
    }


class LazyForms(Mapping[str, str]):
    """`forms` of a moment, worked out only when one of them is asked for."""

    def __init__(self, at: float) -> None:
        self._at = at

    def __getitem__(self, key: str) -> str:
        return forms(self._at)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(forms(self._at))

    def __len__(self) -> int:
        return len(forms(self._at))


def fraction(at: float, digits: int) -> str:
    """The part of a moment behind the second, cut to some digits; those finer than a microsecond are made up."""
    micro = f"{round((at % 1) * 1e6) % 1_000_000:06d}"
    return micro[:digits] if digits <= 6 else (micro + str(int(at * 7919) % 1000).zfill(3))[:digits]


def began_at(lines: Iterator[tuple[float, str]]) -> float | None:
    """The moment at which a recording began, from lines (seconds since then, text) that tell dates, else clocks.

    A line is heard a little after the moment that it tells, so that the latest of the first ones is the nearest.
    """
    dates: list[float] = []
    clocks: list[float] = []
    for at, text in lines:
        for found in _MOMENT.finditer(text):
            kind = found.lastgroup or ""
            if kind in ("iso", "named", "epoch") or (kind == "month" and " 20" in found[0]):
                dates.append(_read(kind, found[0], 0.0) - at)
            elif kind == "clock":
                clocks.append(_read(kind, found[0], 0.0) - at)
        if len(dates) >= _ENOUGH_DATES:
            break
    told = dates or clocks
    return max((moment for moment in told if abs(moment - told[0]) < 30), default=None)


def split(text: str, said_at: float, moment: Callable[[str, str, float], _Made]) -> Iterator[str | _Made]:
    """A text said at a moment, cut at the moments in it: the texts between them, and `moment(kind, old, at)` for each.

    A date far from the moment of saying stays text. `written(kind, old, at)` writes such a moment.
    """
    end = 0
    for found in _MOMENT.finditer(text):
        kind = found.lastgroup or ""
        at = _read(kind, found[0], said_at)
        if abs(at - said_at) <= _FAR_S:
            if found.start() > end:
                yield text[end : found.start()]
            yield moment(kind, found[0], at)
            end = found.end()
    if end < len(text):
        yield text[end:]


def _read(kind: str, text: str, near: float) -> float:
    """The moment that a matched text tells; what it leaves out (year, day) is that of `near`."""
    if kind == "epoch":
        return float(text) if len(text) == 10 or "." in text else float(text) / 10.0 ** (len(text) - 10)
    if kind == "iso":
        return _moment(int(text[:4]), int(text[5:7]), int(text[8:10]), text[11:])
    if kind == "day":
        return _moment(int(text[:4]), int(text[5:7]), int(text[8:10]), "00:00:00")
    if kind == "named":
        return _moment(int(text[7:11]), MONTHS.index(text[3:6]) + 1, int(text[:2]), text[12:])
    parts = gmtime(near)
    if kind == "clock":
        return _moment(parts.tm_year, parts.tm_mon, parts.tm_mday, text)
    if kind == "klog":
        return _moment(parts.tm_year, int(text[:2]), int(text[2:4]), text[5:])
    text = text[4:] if text[:3] in _DAYS else text
    clock, _, year = text[7:].partition(" ")
    return _moment(int(year or parts.tm_year), MONTHS.index(text[:3]) + 1, int(text[4:6]), clock)


def _moment(year: int, month: int, day: int, clock: str) -> float:
    whole = timegm((year, month, day, int(clock[:2]), int(clock[3:5]), int(clock[6:8])))
    return whole + (float(f"0.{clock[9:]}") if len(clock) > 8 else 0.0)


def written(kind: str, old: str, at: float) -> str:
    """A moment in the form of a matched text: the same separators, padding and number of digits."""
    parts = gmtime(at)
    clock = f"{parts.tm_hour:02d}:{parts.tm_min:02d}:{parts.tm_sec:02d}"
    if kind == "epoch":
        whole, dot, rest = old.partition(".")
        more = len(rest) if dot else len(whole) - 10
        return f"{int(at)}{dot}{fraction(at, more)}"
    if kind == "day":
        return f"{parts.tm_year}-{parts.tm_mon:02d}-{parts.tm_mday:02d}"
    if kind == "iso":
        date = f"{parts.tm_year}{old[4]}{parts.tm_mon:02d}{old[7]}{parts.tm_mday:02d}{old[10]}"
        return date + clock + _rest(old[19:], at)
    month = MONTHS[parts.tm_mon - 1]
    if kind == "named":
        return f"{parts.tm_mday:02d}{old[2]}{month}{old[6]}{parts.tm_year}{old[11]}{clock}{_rest(old[20:], at)}"
    if kind == "klog":
        return f"{parts.tm_mon:02d}{parts.tm_mday:02d} {clock}.{fraction(at, 6)}"
    if kind == "clock":
        return clock + _rest(old[8:], at)
    weekday = f"{_DAYS[parts.tm_wday]} " if old[:3] in _DAYS else ""
    bare = old[len(weekday) :]
    day = f"{parts.tm_mday:02d}" if bare[4] == "0" or "." in bare else f"{parts.tm_mday:2d}"
    rest, space, year = bare[15:].partition(" ")
    return f"{weekday}{month} {day} {clock}{_rest(rest, at)}{space}{parts.tm_year if year else ''}"


def _rest(old: str, at: float) -> str:
    return old[0] + fraction(at, len(old) - 1) if old else ""
