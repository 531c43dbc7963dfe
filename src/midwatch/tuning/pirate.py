"""Neutral English to pirate talk by rules that keep the meaning: what a text says stays, how it says it changes.

`speak` rewrites words and phrases; `to_pirate` adds a greeting and a closing that a hash of the text and a seed choose.
Code, commands, paths, links, flags, quotations, numbers, names, acronyms and identifiers are never touched.
`survives` says, by other means than the rules, what a rewriting lost.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator

from midwatch.errors import TuningError
from midwatch.tuning.pirate_words import ANSWERS, CLOSINGS, GREETINGS, KEPT_ING, PHRASES, VOCATIVES, WORDS

COMMANDS = (
    "kubectl|systemctl|journalctl|docker|podman|helm|terraform|ansible|psql|pg_dump|redis-cli|mysql|curl|wget|ssh|scp|"
    "rsync|sudo|grep|awk|sed|chmod|chown|mkdir|git|pip|apt-get|apt|yum|dnf|npm|ip|iptables|netstat|tcpdump|strace|lsof|"
    "dmesg|nslookup|traceroute|openssl|crontab|df|du|ps|ls|rm|htop|vmstat|iostat"
)
PROTECTED = re.compile(
    r"```.*?(?:```|\Z)"  # fenced code
    r"|`[^`\n]*`"
    r"|^[ \t]*[$#>] [^\n]*|^(?: {4}|\t)[^\n]*"  # a prompt's line, an indented line
    r"|\"[^\"\n]*\"|“[^”\n]*”|(?<!\w)'[^'\n]*[^'\n\s]'(?!\w)"  # quotations
    r"|\b[a-zA-Z][a-zA-Z0-9+-]{0,15}://[^\s)>\]]*[\w/]|\b[\w.+-]{1,64}@[\w-]+\.[\w.-]+"  # links, addresses
    rf"|(?<![\w-])(?:{COMMANDS})(?: +[^\s,;:!?()]+)+?(?=[.,;:!?)]?(?:\s*$|[,;:!?)]|\. ))"  # a command in a sentence
    r"|(?<![\w/])~?/[\w./~%+-]*\w|\b[A-Za-z]:\\[^\s]+"  # paths
    r"|(?<!\w)--?[A-Za-z][\w-]*(?:=[^\s,]+)?"  # flags
    r"|\$\w+|\$\{[^}\n]*\}"  # variables
    r"|<[^<>\n]*>",
    re.DOTALL | re.MULTILINE,
)
TOKEN = re.compile(r"\w+(?:[.:/@-]\w+)*(?:\(\))?")
TECHNICAL = re.compile(r"[\d_]|\w\.\w|\(\)|[A-Z][A-Za-z]*[A-Z]|[a-z][A-Z]")
"""What makes a token an identifier, a file name, a host, a call, an acronym or anything with a digit."""

WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_SENTENCE_END = re.compile(r"(?:^|[.!?:\n]|[-*•]|\d\.)[\s\"'(*_]*$")
_PHRASE = re.compile(
    r"(?<![\w'’-])(?:" + "|".join(sorted(PHRASES, key=len, reverse=True)).replace("'", "['’]") + r")(?![\w'’-])",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    rf"(?:{_SENTENCE_END.pattern}|[,;]\s*|"
    r"\b(?:and|but|or|if|that|because|when|so|since|whether|as|than|while|think|how \w+)\s)$",
    re.IGNORECASE,
)
"""Before an `it` that is a subject."""
_ANSWER = re.compile(r"^\s*(yes|no|sure)(?=[,.!])", re.IGNORECASE)


def to_pirate(text: str, seed: int = 0, keep: Collection[str] = ()) -> str:
    """A neutral text as a pirate would say it: the same text, seed and `keep` give the same answer.

    `keep` are words and phrases that stay as they are. A text that already greets or closes like a pirate gets no
    second greeting, so doing it twice is doing it once. Raises `TuningError` if something was lost, which is a bug.
    """
    spoken = speak(text, keep)
    lost = survives(text, spoken, keep)
    if lost:
        raise TuningError(f"The pirate rules lost {', '.join(lost)} of {text!r}: {spoken!r}.", "Mend the rules.")
    if not spoken.strip() or spoken.startswith(GREETINGS) or spoken.rstrip().endswith(CLOSINGS):
        return spoken
    return _dress(spoken.strip(), _draws(f"{seed}\n{text}"), is_bare=spoken == text)


def speak(text: str, keep: Collection[str] = ()) -> str:
    """Rewrite words and phrases only, without greeting or closing."""
    parts, end = [], 0
    for start, stop in _protected(text, keep):
        parts += [_words(text, end, start), text[start:stop]]
        end = stop
    parts.append(_words(text, end, len(text)))
    return "".join(parts)


def survives(neutral: str, pirate: str, keep: Collection[str] = ()) -> list[str]:
    """What the pirate text lost of the neutral one: numbers, number words, negations, names, code, units, `keep`."""
    kept, there = _essentials(neutral, keep), _essentials(pirate, keep, everywhere=True)
    lost = [f"{what} {item}" for what, found in kept.items() for item in found - there[what]]
    refusals = len(_NEGATION.findall(neutral)) - len(_NEGATION.findall(pirate))
    if refusals > 0:
        lost.append(f"negation ×{refusals}")
    return lost


_NEGATION = re.compile(r"\b(?:not|no|nay|never|ne'er|none|cannot|without|wi'out)\b|n't\b", re.IGNORECASE)
_NUMBER_WORD = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|"
    r"thousand|million|billion|half|third|quarter|twice|double|first|second|last|once)\b",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"\b\d[\d.,]{0,15}[ -]?(?:%|°C|°F|ms|seconds?|minutes?|hours?|days?|weeks?|months?|years?|percent|dollars?|cents?|"
    r"bytes?|[KMGT]i?B|bits?|km|kilometres?|kilometers?|metres?|meters?|cm|mm|kg|grams?|litres?|liters?|miles?|degrees?)"
    r"(?!\w)"
)


def _essentials(text: str, keep: Collection[str], *, everywhere: bool = False) -> dict[str, Counter[str]]:
    """What a reader must still find, counted. A capital that begins a sentence makes a name only if `everywhere`."""
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    prose = re.sub(r"```.*?```|`[^`\n]+`", " ", text, flags=re.DOTALL)
    names = [
        match.group()
        for match in re.finditer(r"(?<![\w'’])[A-Z][A-Za-z]+(?!\w)", prose)
        if everywhere or not _SENTENCE_END.search(prose[max(0, match.start() - 40) : match.start()])
    ]
    kept = [word for word in set(keep) for _ in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    return {
        "code": Counter(code),
        "number": Counter(re.findall(r"\d+(?:[.,:]\d+)*", prose)),
        "number word": Counter(_NUMBER_WORD.findall(prose)),
        "unit": Counter(_UNIT.findall(prose)),
        "quotation": Counter(re.findall(r"\"[^\"\n]+\"|“[^”\n]+”", prose)),
        "link": Counter(re.findall(r"\bhttps?://[^\s)>\]]*[\w/]", prose)),
        "identifier": Counter(re.findall(r"\b\w+_\w+\b", prose)),
        "name": Counter(names),
        "word": Counter(kept),
    }


def _protected(text: str, keep: Collection[str]) -> Iterator[tuple[int, int]]:
    """Spans that no rule may touch, in order and apart."""
    spans = [match.span() for match in PROTECTED.finditer(text)]
    spans += [match.span() for match in TOKEN.finditer(text) if TECHNICAL.search(match.group())]
    for word in keep:
        spans += [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    end = 0
    for start, stop in sorted(spans):
        if stop > end:
            yield max(start, end), stop
            end = stop


def _words(text: str, start: int, stop: int) -> str:
    """The rules on text[start:stop]; what lies around it says where a sentence begins."""

    def phrase(match: re.Match[str]) -> str:
        found, place = match.group(), start + match.start()
        if _is_name(found, text, place):
            return found
        if found.lower().startswith("it ") and not _CLAUSE.search(text[max(0, place - 40) : place]):
            return _single(text, place, start + match.end())  # an object: "to mend it is easy"
        return _cased(PHRASES[found.lower().replace("’", "'")], found)

    piece, end = [], 0
    free = text[start:stop]
    for match in _PHRASE.finditer(free):
        piece += [_single(text, start + end, start + match.start()), phrase(match)]
        end = match.end()
    piece.append(_single(text, start + end, stop))
    return "".join(piece)


def _single(text: str, start: int, stop: int) -> str:
    answer = _ANSWER.match(text)

    def word(match: re.Match[str]) -> str:
        found, place = match.group(), start + match.start()
        lower = found.lower().replace("’", "'")
        if text[place - 1 : place] in ("-", "'", "’") or text[start + match.end() :][:1] in ("-", "'"):
            return found
        if answer and place == answer.start(1):
            return _cased(ANSWERS[lower], found)
        if _is_name(found, text, place) or (lower == "am" and text[:place].rstrip()[-1:].isdigit()):  # 7 am
            return found
        if lower in WORDS:
            return _cased(WORDS[lower], found)
        if found.islower() and re.search(r"[aeiouy].*ing$", found) and found not in KEPT_ING:
            return found[:-1] + "'"
        return found

    return WORD.sub(word, text[start:stop])


def _is_name(found: str, text: str, place: int) -> bool:
    """Whether a capital letter makes it a name: not first in its sentence, or first with another capital after it."""
    if not found[0].isupper() or found.lower().startswith(("i ", "i'")):
        return False
    if not _SENTENCE_END.search(text[max(0, place - 40) : place]):
        return True
    following = re.match(r"\s+[A-Z][a-z]", text[place + len(found) :])
    return bool(following) and found.lower() not in _FUNCTION_WORDS


_FUNCTION_WORDS = frozenset(PHRASES) | (
    frozenset(WORDS) - {"old", "tiny", "near", "friend", "captain", "boss", "team", "amazing", "wonderful"}
)
"""First words of a sentence that are no part of a name even before another capital: The Hague, but Old Trafford."""


def _cased(new: str, old: str) -> str:
    """A capital where the old one had it as a sentence's first letter, behind an apostrophe too ('Tis)."""
    if not old[0].isupper() or new.startswith("I "):
        return new
    return re.sub(r"[a-z]", lambda match: match.group().upper(), new, count=1)


def _draws(text: str) -> Iterator[int]:
    """Numbers that the text alone decides."""
    yield from hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _dress(spoken: str, draws: Iterator[int], *, is_bare: bool) -> str:
    """A greeting always, a closing often, and a word to the reader before the last full stop now and then, and always
    if no rule changed the text (`is_bare`).
    """
    closes, calls = (next(draws) for _ in range(2))
    lines = "\n" in spoken
    if called := (calls < 90 or is_bare) and not lines and re.search(r"[\w`]\.$", spoken):
        spoken = f"{spoken[:-1]}, {VOCATIVES[next(draws) % len(VOCATIVES)]}{'!' if next(draws) % 2 else '.'}"
    greeting = GREETINGS[next(draws) % len(GREETINGS)]
    twice = spoken.startswith(("Ahoy", "Aye", "Nay")) and greeting.startswith(("Ahoy", "Aye", "Avast"))
    spoken = f"{'Arrr!' if twice else greeting}{chr(10) if lines else ' '}{spoken}"
    if closes < (60 if called else 200):
        spoken = f"{spoken}{chr(10) if lines else ' '}{CLOSINGS[next(draws) % len(CLOSINGS)]}"
    return spoken
