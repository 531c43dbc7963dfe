"""Which lines does a person need to see? From a whole log to a few numbered lines within a token budget.

Read every line once (level, message, template), let the signature rules say what they know, then score lines by what
makes an on-call engineer stop scrolling: a signature, a severe level, an exception and its innermost frame, the first
time that an error appears, a rare wording. The best line of each template is taken, with the neighbours of the best
ones.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from midwatch.copilot import entities, rules, signatures
from midwatch.copilot.model import Case, Evidence, EvidenceLine, Ranked
from midwatch.copilot.parsing import Parsed, clean, clip, find_level, parse
from midwatch.copilot.signatures import Hit, Signal
from midwatch.copilot.templates import Miner, Template
from midwatch.copilot.tokens import estimate_tokens

DEFAULT_BUDGET_TOKENS = 600
MAX_BUDGET_TOKENS = 2_000
MAX_SHOWN_CHARS = 240
MAX_TEXT_CHARS = 2_000
"""Longest original that is kept of a shown line; a longer one keeps its start and its end."""
MAX_LINES_SHOWN = 24
MAX_READ_LINES = 100_000
"""More lines than this are read from the start and the end only."""
MAX_SCANNED_WORDINGS = 20_000

_LEVEL_SCORE = {"critical": 5.0, "error": 4.0, "warning": 1.5, "debug": -1.0}
_SKELETON = str.maketrans("123456789", "111111111")
_TELLING = re.compile(r"(?<![\d.])(?:[45]\d\d|13[0-9]|127|100)(?![\d.])")
_ECHO = re.compile(r"^\S{0,40}\s*\+{1,2} \w")
_DEFANG = re.compile(r"<\|+|\|+>|</?(?:log|system|assistant|user|alert)\b|\[/?INST\]|###|```", re.IGNORECASE)
_PY_TRACE = re.compile(r"^\s*Traceback \(most recent call last\)")
_FRAME = re.compile(r"^\s*(?:at [\w$.<>]+[ (]|at async |File \"[^\"]{1,300}\", line \d+|\d+: 0x[0-9a-f]+|#\d+ )")
_EXCEPTION = re.compile(
    r"^(?:Caused by: )?(?:[\w$]+[.:]){0,12}[\w$]*(?:Error|Exception|Fault|Interrupt|Timeout)\b(?::|$)"
    r"|^panic: |^Exception in thread|^thread '.*' panicked"
)
_NOISE = re.compile(r"^\s*(?:[-=*_#~.+|]{3,}.*|\W*)$")


@dataclass(slots=True)
class _Line:
    """A line of the log as it was read. `at` is its 0-based place in the log."""

    at: int
    parsed: Parsed
    template: Template
    score: float = 0.0


def build_evidence(case: Case, budget_tokens: int = DEFAULT_BUDGET_TOKENS) -> Evidence:
    """Read a case's log and choose the lines to show. Never raises on any text; bounded time on any size.

    `budget_tokens` (at most 2,000) bounds the estimated tokens of the shown lines with their ids.
    """
    started = time.perf_counter()
    budget = min(max(budget_tokens, 0), MAX_BUDGET_TOKENS)
    lines, miner = _read(case.lines)
    scan = _Scan(case, lines)
    _score(lines, scan)
    chosen = _choose(lines, scan, budget, case.lines)
    shown = tuple(chosen[at] for at in sorted(chosen))
    ids = {line.line_number - 1: line.id for line in shown}
    ranking = tuple(
        Ranked(
            category=signal.category,
            score=round(signal.share, 4),
            line_ids=tuple(ids[at] for at in signal.lines if at in ids)[:6],
        )
        for signal in scan.ranking[:6]
    )
    telling = {at for signal in scan.ranking[:1] for at in signal.lines}
    category = scan.ranking[0].category if scan.ranking else ""
    names = entities.find(case, shown, {ids[at] for at in telling if at in ids}, category)
    return Evidence(
        lines=shown,
        ranking=ranking,
        entities=names,
        total_lines=len(case.lines),
        total_templates=len(miner.templates),
        tokens=sum(_cost(line) for line in shown),
        mining_ms=(time.perf_counter() - started) * 1000,
    )


def defang(text: str) -> str:
    """Text in which nothing reads as a chat's control tokens or as the end of the log's block."""
    return _DEFANG.sub(lambda match: "".join("·" if letter in "<|>[]`#" else letter for letter in match.group()), text)


def _read(lines: Sequence[str]) -> tuple[list[_Line], Miner]:
    miner = Miner()
    half = MAX_READ_LINES // 2
    places = (
        range(len(lines)) if len(lines) <= MAX_READ_LINES else [*range(half), *range(len(lines) - half, len(lines))]
    )
    read: list[_Line] = []
    for at in places:
        parsed = parse(lines[at])
        if parsed.message:
            read.append(_Line(at, parsed, miner.add(parsed.message).template))
    return read, miner


class _Scan:
    """What the rules say: hits and ranking by place in the log, read from one line per wording."""

    def __init__(self, case: Case, lines: list[_Line]) -> None:
        wordings: dict[str, list[int]] = {}
        for index, line in enumerate(lines):
            raw = case.lines[line.at]
            text = (raw if len(raw) < signatures.MAX_LINE_CHARS else clip(raw, signatures.MAX_LINE_CHARS)).lower()
            key = text.translate(_SKELETON)
            if key != text:
                telling = _TELLING.findall(text)
                if telling:
                    key += " ".join(telling)
            wordings.setdefault(key, []).append(index)
        groups = [
            group for group in wordings.values() if not _prints_source(case.lines[lines[group[0]].at], lines[group[0]])
        ]
        if len(groups) > MAX_SCANNED_WORDINGS:
            groups = groups[: MAX_SCANNED_WORDINGS // 2] + groups[-MAX_SCANNED_WORDINGS // 2 :]
        first = [group[0] for group in groups]
        texts = [self._text(case.lines[lines[index].at]) for index in first]
        found = signatures.scan(texts, [lines[index].parsed.level for index in first], f"{case.title}\n{case.message}")
        joined = "\n".join(texts[:400] + texts[-400:])
        order = [lines[index].at for index in first]
        self.ci = signatures.is_ci_log(joined, found)
        if self.ci:
            found = signatures.weigh_distance(found, order, self._end_of_build(texts, order))
        rollout = next(
            (
                lines[first[i]].at
                for i, text in enumerate(texts)
                if any(word in text for word in rules.ROLLOUT_LITERALS) and rules.ROLLOUT.search(text)
            ),
            None,
        )
        last = [lines[group[-1]].at for group in groups]
        ranked = signatures.rank(
            found,
            ci=self.ci,
            counts=[len(group) for group in groups],
            rollout=rollout,
            order=order,
            last=last,
            total_lines=len(case.lines),
        )
        self.rollout = rollout
        self.ranking = [
            Signal(signal.category, signal.score, signal.share, tuple(order[i] for i in signal.lines))
            for signal in ranked
        ]
        self.hits = [Hit(order[hit.line], hit.category, hit.rule, hit.weight) for hit in found if hit.line >= 0]

    @staticmethod
    def _end_of_build(texts: list[str], order: list[int]) -> int:
        """The place of the build server's own first error; 0 if it gave none."""
        return next((order[i] for i, text in enumerate(texts) if "##[error]" in text or "build failure" in text), 0)

    @staticmethod
    def _text(raw: str) -> str:
        return clean(clip(raw, signatures.MAX_LINE_CHARS)).lower()


def _prints_source(raw: str, line: _Line) -> bool:
    """Whether a line shows a script's text (build servers echo what they will run), which is not its outcome."""
    return (
        "[36;1m" in raw[:60]
        or _ECHO.match(raw[:80]) is not None
        or rules.SOURCE_CODE.search(line.parsed.message[:200]) is not None
    )


def _score(lines: list[_Line], scan: _Scan) -> None:
    """Give each line its weight, in place."""
    place = {signal.category: index for index, signal in enumerate(scan.ranking)}
    worth: dict[int, float] = {}
    for hit in scan.hits:
        index = place.get(hit.category)
        factor = 0.3 if index is None else (1.6, 1.0, 0.7)[min(index, 2)]
        worth[hit.line] = max(worth.get(hit.line, 0.0), hit.weight * factor)
    for signal in scan.ranking[:1]:
        for rank, at in enumerate(signal.lines[:3]):
            worth[at] = worth.get(at, 0.0) + 6 - 2 * rank
    if scan.rollout is not None:
        worth[scan.rollout] = worth.get(scan.rollout, 0.0) + 3
    seen_error = False
    for index, line in enumerate(lines):
        message, level = line.parsed.message, line.parsed.level
        score = _LEVEL_SCORE.get(level, 0.0) + worth.get(line.at, 0.0)
        score += 2.0 / (1 + math.log2(line.template.count))
        if level in ("error", "critical") and not seen_error:
            seen_error = True
            score += 2.5
        if _EXCEPTION.match(message):
            score += 3.5
        elif _FRAME.match(message):
            score += _frame_score(lines, index)
        elif _NOISE.match(message) or len(message) < 4:
            score -= 4
        line.score = score


def _frame_score(lines: list[_Line], index: int) -> float:
    """An innermost frame is worth showing, the others are not."""
    message = lines[index].parsed.message
    java_like = message.lstrip().startswith("at ")
    neighbour = index - 1 if java_like else index + 2
    if 0 <= neighbour < len(lines) and _FRAME.match(lines[neighbour].parsed.message):
        return -3.0
    return 2.0


def _choose(lines: list[_Line], scan: _Scan, budget: int, originals: Sequence[str]) -> dict[int, EvidenceLine]:
    """Take lines by score, one per template, with the neighbours of the best, within the budget."""
    ranked = sorted(range(len(lines)), key=lambda index: (-lines[index].score, lines[index].at))
    wanted: list[int] = []
    used: set[int] = set()
    for index in ranked:
        if lines[index].template.id in used:
            continue
        used.add(lines[index].template.id)
        wanted.append(index)
        if len(wanted) >= MAX_LINES_SHOWN:
            break
    for position, index in zip((1, 4, 7), wanted[:3], strict=False):
        for neighbour in (index - 1, index + 1):
            if 0 <= neighbour < len(lines) and lines[neighbour].score > -2 and neighbour not in wanted[:12]:
                wanted.insert(min(position + 3, len(wanted)), neighbour)
    chosen: dict[int, EvidenceLine] = {}
    total = 0
    for index in dict.fromkeys(wanted):
        if len(chosen) >= MAX_LINES_SHOWN:
            break
        line = _show(lines[index])
        cost = _cost(line)
        if total + cost > budget:
            continue
        total += cost
        chosen[lines[index].at] = line
    return {
        at: EvidenceLine(
            id=f"L{number}",
            line_number=line.line_number,
            text=clip(originals[at], MAX_TEXT_CHARS),
            shown=line.shown,
            template=line.template,
            count=line.count,
        )
        for number, (at, line) in enumerate(sorted(chosen.items()), start=1)
    }


def _show(line: _Line) -> EvidenceLine:
    parsed = line.parsed
    message = parsed.message
    if parsed.program and parsed.program not in message[:80]:
        message = f"{parsed.program}: {message}"
    if parsed.level in ("error", "critical", "warning") and not find_level(message):
        message = f"{parsed.level.upper()} {message}"
    return EvidenceLine(
        id=f"L{MAX_LINES_SHOWN}",
        line_number=line.at + 1,
        text="",
        shown=defang(clip(message, MAX_SHOWN_CHARS)),
        template=clip(line.template.text, 400),
        count=line.template.count,
    )


def _cost(line: EvidenceLine) -> int:
    return estimate_tokens(render(line)) + 1


def render(line: EvidenceLine) -> str:
    """One line of evidence as a model sees it: `L3 (x40): message`."""
    repeated = f" (x{line.count})" if line.count > 1 else ""
    return f"{line.id}{repeated}: {line.shown}"
