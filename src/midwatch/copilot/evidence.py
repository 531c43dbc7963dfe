# ruff: noqa: E501 - a pattern is easier to read on one line
"""Which lines does a person need to see? From a whole log to a few numbered lines within a token budget.

The log is read once into a digest (`reading.py`), each kind of line parsed and judged by the rules once
(`wordings.py`), and each line that may be shown gets a score (`scoring.py`). Here the best line of each template is
taken, with the neighbours of the best ones, and shown as a short clean text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from midwatch.copilot import entities, rules, scoring
from midwatch.copilot.baseline import Baseline
from midwatch.copilot.model import Case, Evidence, EvidenceLine, Ranked
from midwatch.copilot.parsing import clip, clip_around, find_level, parse
from midwatch.copilot.reading import Digest, read, read_stream
from midwatch.copilot.scoring import Scored, Verdict
from midwatch.copilot.templates import Wording
from midwatch.copilot.tokens import estimate_tokens
from midwatch.copilot.wordings import TemplateStore

DEFAULT_BUDGET_TOKENS = 600
MAX_BUDGET_TOKENS = 2_000
MAX_SHOWN_CHARS = 240
MAX_TEXT_CHARS = 2_000
"""Longest original that is kept of a shown line; a longer one keeps its start and its end."""
MAX_LINES_SHOWN = 24
SMALL_BUDGET_TOKENS = 1_000
SMALL_SHOWN_CHARS = 180
"""Within a small budget a line is cut earlier, so that more lines are shown."""
_CONSIDERED = 400
_ENOUGH = 6
_WORTH_SHOWING = 0.0
"""Least score of a line that is shown beside enough others."""
_WORTH_A_SECOND = 4.0
"""Least score of a line whose template is shown already."""

_DEFANG = re.compile(r"<\|+|\|+>|</?(?:log|system|assistant|user|alert)\b|\[/?INST\]|###|```", re.IGNORECASE)
_HEX = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])([0-9a-f]{8})[0-9a-f-]{8,120}\b", re.IGNORECASE)
_TELLING = re.compile(
    r"\b(?:error|fail\w*|fatal|panic|exception|refused|denied|timed? ?out|unable|cannot|could not|not found|expired|killed|exceeded)\b",
    re.IGNORECASE,
)


def build_evidence(
    case: Case,
    budget_tokens: int = DEFAULT_BUDGET_TOKENS,
    *,
    store: TemplateStore | None = None,
    baseline: Baseline | None = None,
) -> Evidence:
    """Read a case's log and choose the lines to show. Never raises on any text; bounded memory on any size.

    `budget_tokens` (at most 2,000) bounds the estimated tokens of the shown lines with their ids. A `store` that is
    kept between logs makes the next one cheap to read; a `baseline` says what the service prints when it is healthy.
    """
    started = time.perf_counter()
    store = TemplateStore() if store is None else store
    digest = read(case.lines, store)
    return _choose_evidence(case, digest, store, budget_tokens, baseline, case.lines.__getitem__, started)


def read_evidence(
    case: Case,
    blocks: Iterable[bytes],
    budget_tokens: int = DEFAULT_BUDGET_TOKENS,
    *,
    store: TemplateStore | None = None,
    baseline: Baseline | None = None,
) -> Evidence:
    """The evidence of a log that comes as a stream: an open file, or blocks of whole lines; read once.

    Memory stays bounded whatever the log's length, and line numbers are those of the whole log. `case` gives the alert's
    words; its own lines are not read.
    """
    started = time.perf_counter()
    store = TemplateStore() if store is None else store
    digest = read_stream(blocks, store)
    return _choose_evidence(case, digest, store, budget_tokens, baseline, digest.texts.get, started)


def defang(text: str) -> str:
    """Text in which nothing reads as a chat's control tokens or as the end of the log's block."""
    return _DEFANG.sub(lambda match: "".join("·" if letter in "<|>[]`#" else letter for letter in match.group()), text)


def _choose_evidence(  # noqa: PLR0917 - private, and each is a different thing
    case: Case,
    digest: Digest,
    store: TemplateStore,
    budget_tokens: int,
    baseline: Baseline | None,
    text: Callable[[int], str | None],
    started: float,
) -> Evidence:
    budget = min(max(budget_tokens, 0), MAX_BUDGET_TOKENS)
    store.settle()
    verdict = scoring.weigh(case, digest)
    scored = scoring.score(case, digest, verdict, baseline)
    shown = _choose(scored, digest, budget, text)
    ids = {line.line_number - 1: line.id for line in shown}
    ranking = tuple(
        Ranked(
            category=signal.category,
            score=round(signal.share, 4),
            line_ids=tuple(ids[at] for at in signal.lines if at in ids)[:6],
        )
        for signal in verdict.ranking[:6]
    )
    return Evidence(
        lines=shown,
        ranking=ranking,
        entities=_entities(case, shown, verdict, scored, ids),
        total_lines=digest.total,
        total_templates=len(
            {seen.shape.wording.template.id for seen in digest.seen.values() if seen.shape.wording.words}
        ),
        tokens=sum(_cost(line) for line in shown),
        mining_ms=(time.perf_counter() - started) * 1000,
    )


def _entities(
    case: Case, shown: Sequence[EvidenceLine], verdict: Verdict, scored: Sequence[Scored], ids: dict[int, str]
) -> tuple[str, ...]:
    """Names on the shown lines; a line counts as it scored, and fully if the likeliest category stands on it."""
    first = verdict.ranking[0] if verdict.ranking else None
    best = max((one.score for one in scored), default=1.0) or 1.0
    weights = {ids[one.at]: min(max(one.score / best, 0.0), 1.0) for one in scored if one.at in ids}
    for at in first.lines if first is not None else ():
        if at in ids:
            weights[ids[at]] = 1.0
    return entities.find(case, shown, weights, first.category if first is not None else "")


def _choose(
    scored: list[Scored], digest: Digest, budget: int, text: Callable[[int], str | None]
) -> tuple[EvidenceLine, ...]:
    """Take lines by score, one per template first, with the neighbours of the best, within the budget."""
    limit = SMALL_SHOWN_CHARS if budget < SMALL_BUDGET_TOKENS else MAX_SHOWN_CHARS
    by_place = {one.at: one for one in scored}
    wanted = _one_a_template(scored)
    shown = {one.shape.wording.template.id for one in wanted}
    for position, one in zip((1, 4, 7), wanted[:3], strict=False):
        for near in scoring.neighbours(one.at, digest):
            beside = by_place.get(near) or Scored(near, digest.shape_at[near], one.count, 0.0)
            if beside.score > -2 and beside.shape.wording.template.id not in shown:
                wanted.insert(min(position + 3, len(wanted)), beside)
    chosen: dict[int, EvidenceLine] = {}
    total = 0
    for one in wanted:
        if len(chosen) >= MAX_LINES_SHOWN:
            break
        if one.at in chosen or one.shape.wording.words == () or (len(chosen) >= _ENOUGH and one.score < _WORTH_SHOWING):
            continue
        original = text(one.at)
        if original is None:  # a stream's line that was not kept
            continue
        line = _show(one, original, limit)
        cost = _cost(line)
        if total + cost > budget:
            continue
        total += cost
        chosen[one.at] = line
    places = sorted(chosen)
    return tuple(replace(chosen[at], id=f"L{number}") for number, at in enumerate(places, start=1))


def _one_a_template(scored: list[Scored]) -> list[Scored]:
    """Lines in the order of their score: first the best of each template, then the others that score well."""
    best: list[Scored] = []
    others: list[Scored] = []
    used: set[int] = set()
    said: set[Wording] = set()
    for one in scored[:_CONSIDERED]:
        template = one.shape.wording.template.id
        if template not in used:
            best.append(one)
        elif one.shape.wording not in said and one.score >= _WORTH_A_SECOND:
            others.append(one)
        used.add(template)
        said.add(one.shape.wording)
    return best[:MAX_LINES_SHOWN] + others


def _show(one: Scored, line: str, limit: int) -> EvidenceLine:
    parsed = parse(line)
    message = _HEX.sub(r"\1…", parsed.message)
    if len(message) > limit:
        message = clip_around(message, limit, _telling(message, one))
    if parsed.program and parsed.program not in message[:80]:
        message = f"{parsed.program}: {message}"
    if parsed.level in ("error", "critical", "warning") and not find_level(message):
        message = f"{parsed.level.upper()} {message}"
    return EvidenceLine(
        id=f"L{MAX_LINES_SHOWN}",
        line_number=one.at + 1,
        text=clip(line, MAX_TEXT_CHARS),
        shown=defang(clip(message, limit)),
        template=clip(one.shape.wording.template.text, 400),
        count=one.count,
    )


def _telling(message: str, one: Scored) -> int:
    """Where in a long message its telling words are."""
    for rule, _ in sorted(one.shape.hits, key=lambda hit: -hit[1]):
        match = rules.RULES[rule].pattern.search(message.lower())
        if match is not None:
            return match.start()
    match = _TELLING.search(message)
    return match.start() if match is not None else 0


def _cost(line: EvidenceLine) -> int:
    return estimate_tokens(render(line)) + 1


def render(line: EvidenceLine) -> str:
    """One line of evidence as a model sees it: `L3 (x40): message`."""
    repeated = f" (x{line.count})" if line.count > 1 else ""
    return f"{line.id}{repeated}: {line.shown}"
