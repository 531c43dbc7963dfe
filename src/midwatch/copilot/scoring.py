"""Which lines of a log would make an on-call engineer stop scrolling? Rules weighed over a digest, and a score a line.

A line's score adds what it says (a signature of the likeliest categories, a severe level), how unusual it is (never
seen while the service was healthy, rare, a burst), where it stands in the chain of events (the first error before its
cascade, the step of a build that failed) and its part in a stack trace (the exception, the root of a chain of causes,
the innermost frame of the program's own code).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from midwatch.copilot import rules, signatures
from midwatch.copilot.baseline import Baseline
from midwatch.copilot.model import Case
from midwatch.copilot.reading import BEFORE_END, Digest, Seen
from midwatch.copilot.signatures import Hit, Signal
from midwatch.copilot.wordings import Shape

_LEVEL_SCORE = {"critical": 5.0, "error": 4.0, "warning": 1.5, "debug": -1.0}
_ALERT_WORDS = frozenset(
    (
        "alert",
        "high",
        "critical",
        "warning",
        "error",
        "errors",
        "failed",
        "with",
        "from",
        "that",
        "this",
        "than",
        "been",
        "rate",
    )
)
MAX_SEEN_NEIGHBOUR = 3
"""A neighbour that is seen more often than this says nothing about the line beside it."""
_ENDS = 400
"""Shapes at each end of a log in which a build server's words are looked for."""
_BUILD_TAIL = BEFORE_END
"""Lines before a build's own first error that are its likeliest causes."""


@dataclass(slots=True)
class Scored:
    """A line that may be shown: its 0-based place, its shape, how many lines share its template, its score."""

    at: int
    shape: Shape
    count: int
    score: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of a log. Lines of signals and hits are 0-based places in it."""

    ranking: list[Signal]
    hits: list[Hit]
    rollout: int | None
    ci: bool
    end_of_build: int | None


def weigh(case: Case, digest: Digest) -> Verdict:
    """The categories that the rules see in a log, the likeliest first, and the lines that say so."""
    seen = [one for one in digest.seen.values() if not one.shape.source]
    order = [one.first for one in seen]
    hits = [
        Hit(index, rules.RULES[rule].category, rule, weight)
        for index, one in enumerate(seen)
        for rule, weight in one.shape.hits
    ]
    hits += signatures.scan((), (), f"{case.title}\n{case.message}")
    marks = 0
    for one in seen[:_ENDS] + seen[-_ENDS:]:
        marks |= one.shape.marks
    ci = signatures.is_ci(marks.bit_count(), hits)
    end = next((one.first for one in seen if one.shape.end_of_build), None)
    if ci:
        hits = signatures.weigh_distance(hits, order, end or 0)
    rollout = next((one.first for one in seen if one.shape.rollout), None)
    ranked = signatures.rank(
        hits,
        ci=ci,
        counts=[one.count for one in seen],
        rollout=rollout,
        order=order,
        last=[one.last for one in seen],
        total_lines=digest.total,
    )
    ranking = [Signal(one.category, one.score, one.share, tuple(order[i] for i in one.lines)) for one in ranked]
    placed = [Hit(order[hit.line], hit.category, hit.rule, hit.weight) for hit in hits if hit.line >= 0]
    return Verdict(ranking, placed, rollout, ci, end if ci else None)


def score(  # noqa: PLR0912 - one term of the sum after another
    case: Case, digest: Digest, verdict: Verdict, baseline: Baseline | None
) -> list[Scored]:
    """Every kept line with its score, the best first."""
    worth = _worth(verdict)
    end = digest.total if verdict.end_of_build is None else verdict.end_of_build
    about = _about(case)
    templates: Counter[int] = Counter()
    for one in digest.seen.values():
        templates[one.shape.wording.template.id] += one.count
    first_error = next((one.first for one in digest.seen.values() if _severe(one) and not _habitual(one, digest)), None)
    own_frames = set(digest.frames.values())
    roots = _roots(digest)
    step = max((one.first for one in digest.seen.values() if one.shape.step and one.first < end), default=0)
    scored: list[Scored] = []
    for one in digest.seen.values():
        shape = one.shape
        count = templates[shape.wording.template.id]
        value = _severity(shape) + worth.get(one.first, 0.0) + 2.0 / (1 + math.log2(count))
        value += _unusual(one, digest, baseline)
        if about and one.first in digest.texts:
            value += _relevance(digest.texts[one.first], about)
        if one.first == first_error:
            value += 2.5
        if shape.detail and not verdict.ci:
            value += 1.5
        if shape.change and not _habitual(one, digest):
            value += 1.5
        if shape.exception:
            value += 3.5 + roots.get(one.first, 0.0)
        elif shape.frame:
            value += 2.0 if one.first in own_frames else -4.0
        elif shape.noise:
            value -= 4.0
        if shape.source:
            value -= 3.0
        if verdict.ci:
            value += _in_build(one.first, shape, step, verdict.end_of_build)
        back = shape.change and first_error is not None and one.first < first_error < one.last in digest.texts
        scored.append(Scored(one.last if back else one.first, shape, count, value))
    known = {one.at for one in scored}
    for at in own_frames - known:
        shape = digest.shape_at[at]
        scored.append(Scored(at, shape, templates[shape.wording.template.id], 2.0))
    if verdict.ci and verdict.end_of_build is not None:
        for at in range(max(end - _BUILD_TAIL, step), end):  # lines that were printed before, but now by what failed
            again = digest.shape_at.get(at)
            if again is not None and at not in known and not again.noise and not again.frame:
                value = _severity(again) + _in_build(at, again, step, end)
                scored.append(Scored(at, again, templates[again.wording.template.id], value))
    scored.sort(key=lambda one: (-one.score, one.at))
    return scored


def _worth(verdict: Verdict) -> dict[int, float]:
    """What the rules add to a line, by its place."""
    place = {signal.category: index for index, signal in enumerate(verdict.ranking)}
    worth: dict[int, float] = {}
    for hit in verdict.hits:
        index = place.get(hit.category)
        factor = 0.3 if index is None else (1.6, 1.0, 0.7)[min(index, 2)]
        worth[hit.line] = max(worth.get(hit.line, 0.0), hit.weight * factor)
    for signal in verdict.ranking[:1]:
        for rank, at in enumerate(signal.lines[:3]):
            worth[at] = worth.get(at, 0.0) + 6 - 2 * rank
    if verdict.rollout is not None:
        worth[verdict.rollout] = worth.get(verdict.rollout, 0.0) + 3
    return worth


def _severity(shape: Shape) -> float:
    """What the level says, and the words where the level says little."""
    level = _LEVEL_SCORE.get(shape.level, 0.0)
    return max(level, 0.0) + (2.5 if level < 2 else 0.5) if shape.trouble else level


def _severe(one: Seen) -> bool:
    return one.shape.level in ("error", "critical")


def _habitual(one: Seen, digest: Digest) -> bool:
    """Whether a line keeps coming from the beginning of a log to its end, as what a service prints on any day does."""
    quarter = digest.total // 4
    return digest.total >= 40 and one.count >= 3 and one.first < quarter and one.last >= digest.total - quarter


def _unusual(one: Seen, digest: Digest, baseline: Baseline | None) -> float:
    """Novelty against the service's own baseline, or against the log's own beginning, and bursts."""
    value, total = 0.0, digest.total
    if baseline is not None:
        times = baseline.times_as_often(one.shape, one.count, total)
        value += 1.5 if times is None else -2.0 if times < 5 else 1.0
    elif _habitual(one, digest):
        value -= 2.0
    elif total >= 100 and one.first > 0.2 * total:
        value += 0.5
    if one.count >= 5 and (one.shape.level in ("warning", "error", "critical") or one.shape.trouble):
        density = one.count / (one.last - one.first + 1)
        value += density * min(math.log2(one.count) / 6, 1.0)
    return value


def _about(case: Case) -> list[tuple[str, float]]:
    """What an alert names, in lower case, and what it is worth to a line that names it too."""
    words = dict.fromkeys(
        word.strip(".,:;!?()[]\"'").lower() for word in f"{case.title} {case.message}"[:400].split() if len(word) > 3
    )
    named = [(word, 0.5) for word in words if word not in _ALERT_WORDS][:16]
    return ([(case.service.lower(), 0.5)] if case.service else []) + named


def _relevance(text: str, about: Sequence[tuple[str, float]]) -> float:
    lower = text.lower()
    return min(sum(worth for word, worth in about if word in lower), 1.5)


def _in_build(at: int, shape: Shape, step: int, end: int | None) -> float:
    """A build stops soon after it fails: what its last step printed just before counts, what was set up does not."""
    says = bool(shape.hits) or shape.trouble or shape.exception
    if shape.detail:
        return 3.0
    if rules.PASSED.search(" ".join(shape.wording.words).lower()) is not None:
        return -3.0
    if end is None:
        return 0.0 if says else -1.5
    if at > end:
        return 0.0 if says and not shape.source else -2.0
    before = end - at
    near = 3.5 * (1 - before / (_BUILD_TAIL + 1)) if before <= _BUILD_TAIL and at >= step else 0.0
    if at == step:
        return max(near, 1.5)
    return near if says or near else -2.5


def _roots(digest: Digest) -> dict[int, float]:
    """The last `Caused by` of a chain is its root; the ones between say less."""
    chain = sorted(
        one.first
        for one in digest.seen.values()
        if one.shape.exception and digest.texts.get(one.first, "").lstrip().startswith("Caused by")
    )
    return {
        at: 1.5 if index == len(chain) - 1 or chain[index + 1] - at > 80 else -1.0 for index, at in enumerate(chain)
    }


def neighbours(at: int, digest: Digest) -> Sequence[int]:
    """Places beside a line that were kept and say something that the log does not say all the time."""
    return [
        near
        for near in (at - 1, at + 1)
        if near in digest.shape_at
        and not digest.shape_at[near].noise
        and not digest.shape_at[near].frame
        and digest.seen[digest.shape_at[near]].count <= MAX_SEEN_NEIGHBOUR
    ]
