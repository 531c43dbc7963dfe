"""What makes a log hard to read: text that argues, secrets, colours, binary noise, cut lines, bursts of one line."""

from __future__ import annotations

import random
import re
import string
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote_plus

import orjson

from midwatch.copilot.parsing import parse
from midwatch.copilot.taxonomy import CATEGORIES
from midwatch.foundry.bank import FALSE_ALARM
from midwatch.foundry.names import Cast, Printing
from midwatch.foundry.said import Role

_LEVEL_WORD = re.compile(
    r"(?<![\w/.\[-])(?:ERROR|FATAL|CRITICAL|WARN(?:ING)?|INFO|DEBUG|error|warn|info|fatal)(?![\w/.-])"
)
_COLOURS = {"E": "31", "F": "1;31", "C": "1;31", "W": "33", "I": "32", "D": "36"}
_GARBAGE = "\x00\x01\x02\x07\x08\x0b\x1f\x7f\ufffd\ufffd\ufffd@#P`"
_TELLING_CHARS = 512
_CUT_CHARS = (160, 200, 256, 512, 1024)


@dataclass(slots=True)
class Written:
    """A line as it stands in the log, and what it is."""

    text: str
    role: Role


def argument(source: random.Random, truth: str) -> str:
    """A text that argues for a wrong category: most often that nothing is wrong."""
    wrong = FALSE_ALARM if source.random() < 0.5 else source.choice([name for name in CATEGORIES if name != truth])
    wrong = wrong if wrong != truth else "disk_storage_full" if truth != "disk_storage_full" else "unknown"
    return str(source.choice(_texts()["pleas"])).replace("{wrong}", wrong)


def injected(source: random.Random, cast: Cast, truth: str, at: float) -> str:
    """A line of a program that carries a plea: a query, a user agent, a comment, a message."""
    words = argument(source, truth)
    whole = source.random() < 0.3
    carrier = str(source.choice(_texts()["access" if whole else "carriers"]))
    marked = carrier.replace("{plea}", "\0").replace("{plea_url}", "\1")
    filled = Printing(cast, source).fill(marked, at)
    return filled.replace("\0", words).replace("\1", quote_plus(words))


def secret(source: random.Random, cast: Cast, at: float) -> str:
    """A line that tells a made-up password, token or address."""
    letters = string.ascii_letters + string.digits
    token = "".join(source.choice(letters) for _ in range(source.choice((20, 32, 40, 64))))
    word = "".join(source.choice(letters + "!$%") for _ in range(source.randint(8, 16)))
    text = str(source.choice(_texts()["secrets"])).replace("{token}", "\0").replace("{word}", "\1")
    return Printing(cast, source).fill(text, at).replace("\0", token).replace("\1", word)


def coloured(lines: list[Written], source: random.Random) -> None:
    """Terminal colours around the level of each line, or around the whole line where it names none."""
    whole = source.random() < 0.2

    def paint(found: re.Match[str]) -> str:
        return f"\x1b[{_COLOURS[found[0][0].upper()]}m{found[0]}\x1b[0m"

    for line in lines:
        painted = _LEVEL_WORD.sub(paint, line.text, count=1)
        line.text = f"\x1b[36m{line.text}\x1b[0m" if whole and painted == line.text else painted


def noisy(lines: list[Written], source: random.Random) -> None:
    """Bytes that are no text: in some lines that tell nothing, and as lines of their own."""
    for _ in range(source.randint(1, max(1, min(30, len(lines) // 10)))):
        garbage = "".join(source.choice(_GARBAGE) for _ in range(source.randint(4, 80)))
        at = source.randrange(len(lines) + 1)
        if at < len(lines) and lines[at].role in ("healthy", "before") and source.random() < 0.5:
            middle = source.randint(0, len(lines[at].text))
            lines[at].text = lines[at].text[:middle] + garbage + lines[at].text[middle:]
        else:
            lines.insert(at, Written(garbage, "healthy"))


def truncated(lines: list[Written], source: random.Random) -> None:
    """Long lines cut, as collectors do. A telling line keeps what it tells, behind the longest of prefixes."""
    limit, mark = source.choice(_CUT_CHARS), source.choice(("", "", "...", "…", "[truncated]"))
    for line in lines:
        kept = max(limit, _TELLING_CHARS) if line.role == "truth" else limit
        if len(line.text) > kept:
            line.text = line.text[:kept] + mark


def repeated(lines: list[Written], source: random.Random, room: int) -> None:
    """A burst of one line, whatever it is; a telling line that is repeated tells as often."""
    at = source.randrange(len(lines))
    often = source.randint(3, max(3, min(room, source.choice((8, 30, 300)))))
    lines[at:at] = [Written(lines[at].text, lines[at].role) for _ in range(often)]


def unbroken(text: str) -> str:
    """A text without line ends inside, which a line cannot hold."""
    return text.replace("\r", " ").replace("\n", "\\n")


def like(line: str, message: str) -> str:
    """A message written as another line is: with its time, host and program before it, or in its JSON object."""
    if line[:1] == "{":
        return _as_object(line, message)
    told = parse(line).message
    start = line.rfind(told) if told else -1
    return message if start < 0 else line[:start] + message


def _as_object(line: str, message: str) -> str:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return message
    key = next((name for name in ("message", "msg", "log") if name in value), "")
    return orjson.dumps({**value, key: message}).decode() if key else message


@lru_cache(maxsize=1)
def _texts() -> dict[str, list[str]]:
    return tomllib.loads(Path(__file__).with_name("injected.toml").read_text(encoding="utf-8"))
