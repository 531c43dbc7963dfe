"""The message bank: what programs print that cannot run here. Reads `bank/*.toml` strictly, says what is wrong in it.

`python -m midwatch.foundry.bank [FILE ...]` checks files and counts their entries.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from midwatch.copilot.model import Severity
from midwatch.copilot.taxonomy import CATEGORIES, severity_of
from midwatch.errors import FoundryError
from midwatch.foundry import slots
from midwatch.foundry.recording import Kind

FOLDER = Path(__file__).with_name("bank")
HEALTHY = "healthy"
FALSE_ALARM = "benign_false_alarm"
SHAPES = (
    *("plain", "klog", "json", "logfmt", "syslog", "java", "python", "go", "gha", "access"),
    *("nginx", "postgres", "kernel", "event", "dotnet"),
)
LEVELS = ("fatal", "error", "warn", "info", "debug", "more")
"""What a line may begin with, after an @: its level, or `more` for a line that continues the one before it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry, as `bank/README.md` describes it.

    `where` names its file and number. `common` are those of its lines that entries of another category have too.
    """

    where: str
    category: str
    kind: Kind
    program: str
    shape: tuple[str, ...]
    lines: tuple[str, ...]
    source: str = ""
    entity: str = ""
    severity: str = ""
    cause: str = ""
    language: str = "en"
    alert: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    scary: tuple[str, ...] = ()
    symptoms: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    common: frozenset[str] = frozenset()

    def tells(self, text: str) -> bool:
        """Whether one of its lines shows the cause by itself: no heading or frame of a trace, no line that entries of
        other categories print as well."""
        return text not in self.common and _TRACE.match(message_of(text)[1]) is None


_TRACE = re.compile(
    r"\s*(?:Traceback \(most recent|at [\w$.<]|File \"|#\d+ |goroutine \d|Stack trace|stack backtrace|Require stack|"
    r"note: run with|Aborted\b|\.\.\. \d+ more|\^+\s*$)"
)
"""The parts of a stack trace that name no cause."""
_TEXTS = frozenset(("program", "source", "entity", "severity", "cause", "language"))
_LISTS = frozenset(("shape", "lines", "alert", "accepted", "scary", "symptoms", "before"))
_MESSAGES = ("lines", "scary", "symptoms", "before")
assert {field.name for field in fields(Entry)} == _TEXTS | _LISTS | {"where", "category", "kind", "common"}


def load(folder: Path = FOLDER) -> tuple[Entry, ...]:
    """Every entry of every file of a folder. Raises `FoundryError` that names the file and the entry."""
    found: list[Entry] = []
    for path in sorted(folder.glob("*.toml")):
        found += read(path)
    common = frozenset(text for _, _, text in _contradictions(found))
    return tuple(replace(entry, common=common.intersection(entry.lines)) for entry in found)


def read(path: Path) -> tuple[Entry, ...]:
    """The entries of one file. Raises `FoundryError` that names the file and the entry."""
    wrong = list(problems(path))
    if wrong:
        raise FoundryError(_summary(wrong), "bank/README.md describes an entry.")
    return tuple(_entry(path, number, value) for number, value in enumerate(_parse(path)["entry"], start=1))


def problems(path: Path) -> Iterator[str]:
    """What is wrong with a file, a sentence each that names the file and the entry. Nothing for a good file."""
    category = _named(path)
    if category != HEALTHY and category not in CATEGORIES:
        yield f"{path.name} is named after no category; allowed: {HEALTHY}, {', '.join(CATEGORIES)}."
    try:
        value = _parse(path)
    except FoundryError as error:
        yield error.what
        return
    for key in value.keys() - {"entry"}:
        yield f"{path.name} has a table {key}; only [[entry]] is allowed."
    entries = value.get("entry")
    if not isinstance(entries, list) or not entries:
        yield f"{path.name} has no [[entry]]."
        return
    for number, entry in enumerate(entries, start=1):
        for problem in _entry_problems(category, entry):
            yield f"{path.name}, entry {number} ({entry.get('program', 'no program')}): {problem}"


def _named(path: Path) -> str:
    """The category that a file is named after; `-2` marks a second volume of it."""
    return path.stem.removesuffix("-2")


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FoundryError(f"{path.name} cannot be read as TOML ({error}).", "Mend it, and check it again.") from error


def _entry_problems(category: str, entry: dict[str, Any]) -> Iterator[str]:
    for key in entry.keys() - _TEXTS - _LISTS:
        yield f"{key} is not a field; allowed: {', '.join(sorted(_TEXTS | _LISTS))}."
    wrong_kind = [key for key in _TEXTS & entry.keys() if not isinstance(entry[key], str)]
    wrong_kind += [
        key
        for key in _LISTS & entry.keys()
        if not isinstance(entry[key], list) or not all(isinstance(item, str) for item in entry[key])
    ]
    for key in wrong_kind:
        yield f"{key} must be {'a text' if key in _TEXTS else 'a list of texts'}."
    if not wrong_kind:
        yield from _value_problems(category, entry)
        yield from _message_problems(entry)


def _value_problems(category: str, entry: dict[str, Any]) -> Iterator[str]:
    program = entry.get("program", "")
    if not program or program != program.strip().lower() or " " in program:
        yield "program must be the family's name in small letters without spaces."
    if not entry.get("shape"):
        yield f"shape must name at least one of {', '.join(SHAPES)}."
    for shape in entry.get("shape", ()):
        if shape not in SHAPES:
            yield f"{shape!r} is not a shape; allowed: {', '.join(SHAPES)}."
    if entry.get("severity", "high") not in get_args(Severity):
        yield f"{entry['severity']!r} is not a severity; allowed: {', '.join(get_args(Severity))}."
    for other in entry.get("accepted", ()):
        if other not in CATEGORIES or other == category:
            yield f"accepted names {other!r}; allowed are the ids of other categories."
    if category != HEALTHY and not entry.get("cause", "").strip():
        yield "cause must say in one sentence what is wrong."
    if not entry.get("lines"):
        yield "lines must hold at least one telling line."
    if category == HEALTHY and (unused := {"entity", "alert", "accepted", "symptoms", "scary"} & entry.keys()):
        yield f"a healthy entry has no {', '.join(sorted(unused))}."
    if category != FALSE_ALARM and "scary" in entry:
        yield f"scary belongs to {FALSE_ALARM} only."


def _message_problems(entry: dict[str, Any]) -> Iterator[str]:
    for key in _MESSAGES:
        for number, text in enumerate(entry.get(key, ()), start=1):
            if not message_of(text)[1].strip():
                yield f"{key}, line {number} is empty."
            if "\n" in text or "\r" in text:
                yield f"{key}, line {number} holds a line end; write each line as its own text."
            yield from (f"{key}, line {number}: {problem}" for problem in slots.problems(text))
    if any(not text.strip() for text in entry.get("alert", ())):
        yield "alert holds an empty text."
    for key in ("entity", "cause", "source", "alert"):
        value = entry.get(key, "")
        for text in [value] if isinstance(value, str) else value:
            yield from (f"{key}: {problem}" for problem in slots.problems(text))
    named = {name for key in _MESSAGES for text in entry.get(key, ()) for _, name in slots.kinds_in(text)}
    named |= {name for _, name in slots.kinds_in(entry.get("source", ""))}
    named |= {"host"} if set(entry.get("shape", ())) & {"syslog", "kernel"} else set()  # such lines begin with it
    for kind, name in slots.kinds_in(entry.get("entity", "")):
        if not named & {name, *(part + name.removeprefix(kind) for part in slots.PARTS.get(kind, ()))}:
            yield f"entity is {{{name}}}, which no line of the entry names."


def message_of(text: str) -> tuple[str, str]:
    """The level that a line of the bank begins with ("" if none) and the message after it."""
    if text.startswith("@"):
        word, _, rest = text[1:].partition(" ")
        if word in LEVELS:
            return word, rest
    return "", text


def _entry(path: Path, number: int, value: dict[str, Any]) -> Entry:
    named = _named(path)
    kind: Kind = "healthy" if named == HEALTHY else "false_alarm" if named == FALSE_ALARM else "fault"
    read: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    read.setdefault("severity", "info" if kind == "healthy" else severity_of(named))
    category = "" if kind == "healthy" else named
    return Entry(where=f"{path.name}#{number}", category=category, kind=kind, **read)


def _contradictions(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry, str]]:
    """A line that two categories claim, unless one of them accepts the other."""
    claimed: dict[str, Entry] = {}
    for entry in entries:
        for text in entry.lines if entry.kind == "fault" else ():
            other = claimed.setdefault(text, entry)
            if other.category not in (entry.category, *entry.accepted) and entry.category not in other.accepted:
                yield entry, other, text


def _summary(wrong: Sequence[str]) -> str:
    more = f" ({len(wrong) - 1} more are wrong.)" if len(wrong) > 1 else ""
    return wrong[0] + more


def main(arguments: Sequence[str]) -> int:
    """Check the files named, or the whole bank; print what is wrong and how many entries there are."""
    paths = [Path(argument) for argument in arguments] or sorted(FOLDER.glob("*.toml"))
    entries: list[Entry] = []
    wrong: list[str] = []
    for path in paths:
        found = list(problems(path))
        wrong += found
        if not found:
            entries += read(path)
    for entry, other, text in _contradictions(entries):
        if entry.tells(text):
            sys.stdout.write(f"{entry.where} and {other.where} both have the line {text!r}; it tells neither.\n")
    for problem in wrong:
        sys.stdout.write(problem + "\n")
    programs = len({entry.program for entry in entries})
    sys.stdout.write(
        f"{len(entries)} good entries of {programs} programs in {len(paths)} files; {len(wrong)} problems\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
