"""Lay out one incident: the log around the cited lines, what looked similar, where the time went. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from midwatch.copilot.model import IncidentView
from midwatch.dashboard.words import visible

CONTEXT_LINES = 3
"""Lines shown above and below each cited line."""
FOLDED_LINES = 120
"""Most lines that one fold holds; the whole log is a link away."""
OPEN_LINES = 40
"""A log without citations is shown open up to this many lines."""
LINE_CHARS = 2_000
"""Characters shown of a line near a citation."""
FOLDED_LINE_CHARS = 400
"""Characters shown of a line inside a fold."""


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """One line of the log on the page. `mark` is the evidence id ("L3") if the model was shown the line."""

    number: int
    text: str
    mark: str = ""
    cited: bool = False


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive lines, open or folded. `left_out` counts lines of a fold that are only in the whole log."""

    rows: tuple[LogRow, ...]
    folded: bool
    first: int
    last: int
    left_out: int = 0

    @property
    def count(self) -> int:
        """Lines of the log that this stretch stands for."""
        return self.last - self.first + 1


@dataclass(frozen=True, kw_only=True)
class Span:
    """A bar of the waterfall. `start` and `width` are percent of the whole."""

    name: str
    seconds: float
    start: float
    width: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A runbook or a past incident beside the answer. `link` is "" where there is nowhere safe to go."""

    what: str
    title: str
    link: str
    similarity: float
    excerpt: str
    category: str = ""


class _Log:
    """The lines of an incident with what is known of each: 1-based numbers, evidence ids, which are cited."""

    def __init__(self, view: IncidentView) -> None:
        self.lines = view.lines
        self.marks: dict[int, str] = {}
        self.cited: set[int] = set()
        if view.finding is not None:
            citations = view.finding.diagnosis.citations
            self.marks = {line.line_number: line.id for line in view.finding.evidence.lines}
            self.marks.update({item.line_number: item.id for item in citations})
            self.cited = {item.line_number for item in citations if 1 <= item.line_number <= len(view.lines)}

    def row(self, number: int, limit: int) -> LogRow:
        """Line `number`, at most `limit` characters of it."""
        text = visible(self.lines[number - 1], limit)
        return LogRow(number=number, text=text, mark=self.marks.get(number, ""), cited=number in self.cited)

    def open(self, first: int, last: int) -> Stretch:
        """The lines around a citation."""
        rows = tuple(self.row(number, LINE_CHARS) for number in range(first, last + 1))
        return Stretch(rows=rows, folded=False, first=first, last=last)

    def fold(self, first: int, last: int) -> Stretch:
        """The lines between citations: of many, those nearest to a citation."""
        count, half = last - first + 1, FOLDED_LINES // 2
        if count <= FOLDED_LINES:
            kept = list(range(first, last + 1))
        elif last == len(self.lines):
            kept = list(range(first, first + FOLDED_LINES))
        elif first == 1:
            kept = list(range(last - FOLDED_LINES + 1, last + 1))
        else:
            kept = [*range(first, first + half), *range(last - half + 1, last + 1)]
        rows = tuple(self.row(number, FOLDED_LINE_CHARS) for number in kept)
        return Stretch(rows=rows, folded=True, first=first, last=last, left_out=count - len(rows))

    def windows(self) -> list[tuple[int, int]]:
        """First and last line of each open stretch, in order, touching ones joined."""
        windows: list[tuple[int, int]] = []
        for number in sorted(self.cited):
            first, last = max(1, number - CONTEXT_LINES), min(len(self.lines), number + CONTEXT_LINES)
            # A fold of one line would be as tall as the line.
            if windows and first <= windows[-1][1] + 2:
                windows[-1] = (windows[-1][0], last)
            else:
                windows.append((first, last))
        return windows


def stretches(view: IncidentView) -> list[Stretch]:
    """The log as open stretches around cited lines, with folds between them.

    Without the log (it is kept for some hours only) the cited lines themselves are shown.
    """
    if not view.lines:
        return _citations_alone(view)
    log = _Log(view)
    if not log.cited and len(view.lines) <= OPEN_LINES:
        return [log.open(1, len(view.lines))]
    result: list[Stretch] = []
    previous = 0
    for first, last in log.windows():
        if first > previous + 1:
            result.append(log.fold(previous + 1, first - 1))
        result.append(log.open(first, last))
        previous = last
    if previous < len(view.lines):
        result.append(log.fold(previous + 1, len(view.lines)))
    return result


def _citations_alone(view: IncidentView) -> list[Stretch]:
    citations = view.finding.diagnosis.citations if view.finding else ()
    return [
        Stretch(
            rows=(LogRow(number=item.line_number, text=visible(item.text, LINE_CHARS), mark=item.id, cited=True),),
            folded=False,
            first=item.line_number,
            last=item.line_number,
        )
        for item in sorted(citations, key=lambda item: item.line_number)
    ]


def similar(view: IncidentView) -> list[Similar]:
    """What looked similar when the incident was diagnosed, without the incident itself."""
    recalled = view.finding.recalled if view.finding else ()
    found = []
    for item in recalled:
        if item.kind == "runbook":
            what = f"Runbook{', ' if item.section else ''}{item.section}"
            link = item.url if item.url.startswith(("http://", "https://")) else ""
        else:
            what, link = f"Incident {item.ref}", f"/incidents/{item.ref}"
        if (item.kind, item.ref) != ("incident", str(view.id)):
            found.append(
                Similar(
                    what=what,
                    title=item.title,
                    link=link,
                    similarity=item.similarity,
                    excerpt=item.excerpt,
                    category=item.category,
                )
            )
    return found


def waterfall(view: IncidentView) -> list[Span]:
    """Where the time from the first event to the answer went: waiting, the first token, decoding.

    Empty while there is no answer.
    """
    if view.finding is None or view.diagnosed_at is None:
        return []
    diagnosis = view.finding.diagnosis
    latency_s = max(0.0, diagnosis.latency_ms / 1000)
    ttft_s = min(max(0.0, diagnosis.ttft_ms / 1000), latency_s)
    total_s = max(view.diagnosed_at - view.opened_at, latency_s)
    waited_s = total_s - latency_s
    note = f"after {view.attempts} attempts" if view.attempts > 1 else "for more events, and for its turn"
    parts = [
        ("Waited", waited_s, note),
        ("First token", ttft_s, "evidence, prompt, prefill"),
        ("Decode", latency_s - ttft_s, f"{diagnosis.completion_tokens:,} tokens"),
    ]
    spans: list[Span] = []
    start_s = 0.0
    for name, seconds, why in parts:
        spans.append(_span(name, seconds, start_s, total_s, why))
        start_s += seconds
    return [*spans, _span("Total", total_s, 0.0, total_s, "")]


def _span(name: str, seconds: float, start_s: float, total_s: float, note: str) -> Span:
    scale = 100 / total_s if total_s > 0 else 0.0
    return Span(
        name=name,
        seconds=seconds,
        start=round(start_s * scale, 2),
        width=round(seconds * scale, 2),
        note=note,
    )
