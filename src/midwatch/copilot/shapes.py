# ruff: noqa: E501 - a pattern is easier to read on one line
"""What does one line say of all lines like it? Its level and wording, and what reading it once can tell.

A shape is made once for each kind of line and then looked up, so it may take a hundred microseconds. Where a number
decides what a line means (a status, an exit code, none or some failures), each meaning is a shape of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from midwatch.copilot import rules, signatures
from midwatch.copilot.parsing import clean, clip, parse, strip_time
from midwatch.copilot.structured import Level
from midwatch.copilot.taxonomy import CATEGORIES
from midwatch.copilot.templates import Miner, Wording

MAX_READ_CHARS = 2_000
"""Of a longer line only so much is read."""
_MAX_DECIDING_CHARS = 500
_ACCESS = re.compile(r'" ([1-5]\d\d) (?:\d+|-)(?: |$)')
_NUMBER = re.compile(r"[ =(\"':]\d+(?:\.\d+(?=%))?(?![\w.:/-])")
_NUMERIC_LEVEL = re.compile(r"\"level\": ?\d\d\b")
_COUNTS = {
    before + number: number
    for number in ("0", "127", "100", *map(str, range(90, 100)), *map(str, range(130, 140)), *map(str, range(400, 600)))
    for before in " =(\"':"
}
"""Numbers that decide, each with what may stand before it."""
_DECIDED_BY_NUMBERS = re.compile(
    r"\" [1-5]\d\d |^<\d|\d ?%"
    r"|(?:exit\w*|stat(?:us|e)|code|errno|signal|level|fail\w*|err(?:or)?s?|severity|priority|restarts?|dropped|lag|pauses?|took|averages?"
    r"|returned|answered|responded|got|response|limit|problems?|vulnerabilities|timeouts?|throttled|rejected|deadlocks|http/\d\.\d)"
    r"\W{0,4}(?:[a-z]+[ :=]{1,2}){0,2}\d"
    r"|\d+(?: [a-z]+)? (?:fail|err|problem|tests?|vulnerab|nodes|warning|violation|restart)"
)
_TROUBLE = re.compile(
    r"error|fail(?:ed|ure|ing|s\b|\b)|fatal|\bpanic|exception|exceed|refus|\bden(?:ied|y|ies)\b|timed?[- ]?out|\bunable\b"
    r"|\b(?:cannot|can'?t|could(?: not|n't)|does(?: not|n't)|did(?: not|n't)|is(?: not|n't)|won't|not (?:found|ready|allowed|permitted|available|responding|reachable|set))\b"
    r"|critical|\bkill(?:ed|ing)?\b|abort|\blost\b|\bdown\b|\bresets?\b|expired?\b|\bfull\b|invalid|unknown|\bmissing\b|unreachable|unavailable"
    r"|\bno (?:such|route|space|active|healthy|available|leader|quorum|endpoints?|space|response|nodes?|matching|tests?)\b|reject|dropp(?:ed|ing)\b|exhaust"
    r"|\btoo (?:many|long|large|slow|old|few|small)\b|\bstuck\b|\bstall|crash|forbidden|unauthori[sz]ed|corrupt|conflict|unhealthy|overload|\bevict|throttl"
    r"|deadlock|back-?off|mismatch|violat|insufficient|\bout of\b|limit reached|g(?:ave|iving) up|bad gateway|unexpected|misconfig|stale|\blag(?:ging)?\b|behind\b"
    r"|degraded|terminated|segfault|core dumped|undefined|unresolved|not (?:be|exist)|no longer|\bslow\b|blocked|exited with|non-?zero"
)
"""Words that tell of trouble at any level: programs log much of it as information."""
_ECHO = re.compile(r"^\S{0,40}\s*\+{1,2} \w")
_FRAME = re.compile(
    r"^\s*(?:at [\w$.<>/@]+[ (:]|at async |File \"[^\"]{1,300}\", line \d+|\d+: 0x[0-9a-f]+|#\d+ |from \S{1,300}:\d+:in "
    r"|/\S{1,300}\.go:\d+|\.{3} \d+ (?:more|common frames))"
)
_EXCEPTION = re.compile(
    r"^(?:\w+ ){0,2}(?:Caused by: |Unhandled exception\.? )?(?:[\w$]+[.:]){0,12}[\w$]*(?:Error|Exception|Fault|Interrupt|Timeout)\b(?::| \[|$)"
    r"|^panic: |^Exception in thread|^thread '.*' panicked|^fatal error: |^Unhandled exception|^Caused by: "
)
_PLAIN_TROUBLE = (
    *(
        "error",
        "fatal",
        "exception",
        "exceed",
        "refus",
        "critical",
        "abort",
        "invalid",
        "unknown",
        "unreachable",
        "unavailable",
    ),
    *(
        "reject",
        "exhaust",
        "crash",
        "forbidden",
        "unauthori",
        "corrupt",
        "conflict",
        "unhealthy",
        "overload",
        "throttl",
    ),
    *(
        "deadlock",
        "mismatch",
        "violat",
        "insufficient",
        "unexpected",
        "misconfig",
        "degraded",
        "terminated",
        "undefined",
    ),
)
"""Words of `_TROUBLE` that need no pattern."""
_TROUBLE_HINTS = (
    *(
        "fail",
        "panic",
        "deni",
        "deny",
        "timed",
        "timeout",
        "time out",
        "time-out",
        "unable",
        "cannot",
        "can't",
        "cant",
        "could",
    ),
    *(
        "doesn",
        "does not",
        "did not",
        "didn",
        "is not",
        "isn",
        "won't",
        "not ",
        "kill",
        "lost",
        "down",
        "reset",
        "expire",
        "full",
    ),
    *(
        "missing",
        "no ",
        "dropp",
        "too ",
        "stuck",
        "stall",
        "evict",
        "backoff",
        "back-off",
        "out of",
        "limit reached",
        "ave up",
    ),
    *(
        "iving up",
        "bad gateway",
        "stale",
        "lag",
        "behind",
        "segfault",
        "core dumped",
        "unresolved",
        "slow",
        "blocked",
        "exited",
        "zero",
    ),
)
"""A line without any of these needs no look at `_TROUBLE`, which takes ten times as long."""
_CHANGE = re.compile(
    r"\b(?:shut(?:ting)? ?down|shutdown|sigterm|sigkill|sighup|stopp(?:ed|ing)|starting|started|restart(?:ed|ing)?|ready (?:to|for)|is ready|became ready"
    r"|listening|reload(?:ed|ing)?|promoted|fail(?:ing)?[- ]?over|switchover|recover(?:ed|y)?|resum(?:ed|ing)|back (?:online|to normal|up)|re-?connected|re-?established"
    r"|rolled back|rollback|roll(?:ing)?[ -]?out|deploy(?:ed|ing|ment)|upgrad(?:ed|ing)|scal(?:ed|ing) (?:up|down|to)|maintenance|drain(?:ed|ing)|resolved|cleared|elected"
    r"|joined|left the|healthy|leader|primary|standby|released?|migrat(?:ed|ing|ion))\b"
)
"""Words of a change of state: what was stopped, started, changed or came back."""
_DETAIL = re.compile(
    r"^\s*(?:(?-i:DETAIL|HINT|CAUSE|REASON)|expected|received|actual|got|want(?:ed)?|but was|left|right)\b\s*[:=]|^E  \s*\S|^\s*● |^\s*[>+] +\d+ \||^\s*(?:assert|require)\b",
    re.IGNORECASE,
)
_NOISE = re.compile(r"^[\W_]*(?:\w{0,2}[\W_]*)$")


_OUR_WORDS = tuple(name for name in CATEGORIES if "_" in name)
_ADDRESSED = ("ignore", "disregard", "forget", "instruction", "assistant", "you are", "language model", "prompt")
_ORDER = re.compile(
    r"\b(?:ignore|disregard|forget) (?:all |any |the |every)?(?:\w+ )?(?:previous|prior|above|earlier|instructions|everything|log)"
    r"|\b(?:assistant|system)\W{1,3}(?:the|you|i|please|answer|classify)\b|\byou are (?:now |an? )?(?:\w+ )?(?:assistant|model|classifier|ai)\b"
    r"|\b(?:large )?language model\b.{0,60}\b(?:answer|category|cause)\b|\binstructions?\b.{0,40}\b(?:answer|category|cause)\b"
)


@dataclass(slots=True, eq=False)
class Shape:
    """What is known of all lines of one wording. `hits` are signature rules (index, weight) that match it.

    `source` tells that the line prints a program's text and not its outcome; `marks` are the build server's words in
    it, by bit; `trouble` that it speaks of trouble, whatever its level; `detail` that it says what
    an assertion compared; `step` that a build's step begins; `change`
    that something changed its state; `variants` holds one shape for each meaning of its numbers, where these decide.
    """

    wording: Wording
    level: Level = ""
    program: str = ""
    hits: tuple[tuple[int, float], ...] = ()
    marks: int = 0
    exception: bool = False
    frame: bool = False
    noise: bool = False
    source: bool = False
    rollout: bool = False
    end_of_build: bool = False
    trouble: bool = False
    detail: bool = False
    step: bool = False
    change: bool = False
    variants: dict[tuple[str, ...], Shape] | None = field(default=None, repr=False)


def shape_of(line: str, miner: Miner) -> tuple[Shape, str]:
    """What one line says of all lines like it, and the line in lower case as the rules read it."""
    parsed = parse(line)
    message = parsed.message
    raw = line if len(line) < signatures.MAX_LINE_CHARS else clip(line, signatures.MAX_LINE_CHARS)
    lower = strip_time(clean(raw)).lower()
    frame = _FRAME.match(message) is not None
    pleads = addresses_a_model(lower)
    shape = Shape(
        miner.add(message),
        "" if pleads else parsed.level,
        parsed.program,
        marks=sum(1 << bit for bit, mark in enumerate(rules.CI_MARKS) if mark in lower),
        exception=not frame and _EXCEPTION.match(message) is not None,
        frame=frame,
        noise=pleads or len(message) < 4 or _NOISE.match(message) is not None,
        source=pleads or prints_source(line, message),
        rollout=any(word in lower for word in rules.ROLLOUT_LITERALS) and rules.ROLLOUT.search(lower) is not None,
        end_of_build="##[error]" in lower or "build failure" in lower,
        trouble=not pleads and _tells_of_trouble(message.lower()),
        detail=_DETAIL.match(message) is not None,
        step="##[group]run " in lower,
        change=_CHANGE.search(message[:400].lower()) is not None,
    )
    return shape, lower


def decided_by_numbers(lower: str) -> bool:
    """Whether a line's numbers may decide what it means; `lower` is as `shape_of` gives it."""
    return _DECIDED_BY_NUMBERS.search(lower[:_MAX_DECIDING_CHARS]) is not None


def _tells_of_trouble(lower: str) -> bool:
    """Whether a message says that something went wrong, and does not take it back."""
    text = lower[:MAX_READ_CHARS]
    if not any(word in text for word in _PLAIN_TROUBLE) and not (
        any(hint in text for hint in _TROUBLE_HINTS) and _TROUBLE.search(text) is not None
    ):
        return False
    return rules.NEGATED.search(text) is None


def addresses_a_model(lower: str) -> bool:
    """Whether a line talks to whoever reads logs by machine: it names our categories, or gives orders to a model.

    Programs do neither when they break, so such a line is never evidence; `lower` is as `shape_of` gives it.
    """
    return any(name in lower for name in _OUR_WORDS) or (
        any(word in lower for word in _ADDRESSED) and _ORDER.search(lower[:MAX_READ_CHARS]) is not None
    )


def prints_source(line: str, message: str) -> bool:
    """Whether a line shows a script's text (build servers echo what they will run), which is not its outcome."""
    return (
        "[36;1m" in line[:60]
        or _ECHO.match(line[:80]) is not None
        or rules.SOURCE_CODE.search(message[:200]) is not None
    )


def numbers_of(line: str) -> tuple[str, ...]:
    """The numbers of a line that may decide what it means, the others only by their rough size."""
    access = _ACCESS.search(line) if '" ' in line else None
    if access is not None:
        return (access[1],)
    found = _NUMBER.findall(line if len(line) <= MAX_READ_CHARS else line[:MAX_READ_CHARS])
    counts = [_COUNTS.get(number) or ("0000" if len(number) > 4 else "1") for number in found]
    if line[:1] == "<":
        counts.append(line[:5])
    elif '"level"' in line:
        level = _NUMERIC_LEVEL.search(line)
        counts.append(level[0] if level is not None else "")
    return tuple(counts)
