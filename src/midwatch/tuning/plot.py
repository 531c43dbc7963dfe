"""One picture: how much style each contestant has, against how much of the base's right answers it keeps.

The SVG stands alone (a browser, a README) or inside a page; it brings its own colours for light and dark grounds, and
the same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from midwatch.tuning.bootstrap import Interval
from midwatch.tuning.measures import BASE, PROMPTED, TUNED, Measure

WIDTH, HEIGHT = 420, 330
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 20, 46
LINE = 15
"""Height of a line of text."""
LABEL_WIDTH = 170
"""About how wide a label is."""
LABELS = {BASE: "base", PROMPTED: "base, prompted", TUNED: "tuned"}

_STYLE = """
.mw { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
.mw text { fill: #545c68; stroke: #fff; stroke-width: 3; paint-order: stroke; }
.mw .name { fill: #15181d; font-weight: 600; }
.mw .grid { stroke: #e2e5ea; } .mw .axis { stroke: #8b95a5; }
.mw .aim { fill: #18734a; fill-opacity: .13; stroke: #18734a; stroke-dasharray: 3 3; }
.mw .aim-name { fill: #18734a; }
.mw .base { fill: #6b7482; stroke: #6b7482; } .mw .prompted { fill: #b26a10; stroke: #b26a10; }
.mw .tuned { fill: #2458c7; stroke: #2458c7; } .mw .seed { fill: none; }
.mw line { stroke-width: 1; } .mw .reach { stroke-width: 2; }
@media (prefers-color-scheme: dark) {
.mw text { fill: #9da6b3; stroke: #15181d; } .mw .name { fill: #e7e9ed; }
.mw .grid { stroke: #272c34; } .mw .axis { stroke: #77818f; }
.mw .aim { fill: #5cc690; stroke: #5cc690; } .mw .aim-name { fill: #5cc690; }
.mw .base { fill: #a3adba; stroke: #a3adba; } .mw .prompted { fill: #f0b35c; stroke: #f0b35c; }
.mw .tuned { fill: #82aaff; stroke: #82aaff; } .mw .seed { fill: none; }
}
"""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Per cent along a stretch of the picture."""

    first: float
    last: float
    most: float

    def place(self, value: float) -> float:
        """Where a value lies, kept inside."""
        return self.first + (self.last - self.first) * min(max(value, 0.0), self.most) / self.most

    @property
    def ticks(self) -> range:
        """Every 20 %."""
        return range(0, int(self.most) + 1, 20)


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A contestant's place."""

    contestant: str
    style: Interval
    kept: Interval


def draw(style: Measure, kept: Measure) -> str:
    """The picture from the style rate and the retention, both in %; a contestant without either is left out."""
    points = _points(style, kept)
    most = max([110.0, *(point.kept.high for point in points)])
    x = _Axis(first=LEFT, last=WIDTH - RIGHT, most=-(-most // 10) * 10)
    y = _Axis(first=HEIGHT - BOTTOM, last=TOP, most=105.0)
    parts = [*_frame(x, y), *_aims(style, kept, x, y)]
    if len(style.per_seed) > 1:
        for rate, share in zip(style.per_seed, kept.per_seed, strict=False):
            parts.append(f'<circle class="tuned seed" cx="{x.place(share):.1f}" cy="{y.place(rate):.1f}" r="3.5"/>')
    for point in points:
        parts += _reach(point, x, y)
    parts += _names(points, x, y)
    body = "\n".join(parts)
    words = "; ".join(
        f"{LABELS[point.contestant]}: style rate {point.style.value:.1f} %, retention {point.kept.value:.1f} %"
        for point in points
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" class="mw" role="img">\n'
        f"<title>Style rate against exact-answer retention. {escape(words)}</title>\n"
        f"<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


def _points(style: Measure, kept: Measure) -> list[_Point]:
    """Those that have both figures. The base keeps all of itself, so its retention is 100 without an interval."""
    whole = Interval(value=100.0, low=100.0, high=100.0)
    found = []
    for contestant, rate in style.intervals.items():
        share = whole if contestant == BASE else kept.intervals[contestant]
        if rate is not None and share is not None:
            found.append(_Point(contestant=contestant, style=rate, kept=share))
    return found


def _frame(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for tick in y.ticks:
        at = y.place(tick)
        parts.append(f'<line class="grid" x1="{x.first}" x2="{x.last}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{x.first - 8}" y="{at + 4:.1f}" text-anchor="end">{tick}</text>')
    for tick in x.ticks:
        at = x.place(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{y.first}" y2="{y.last}"/>')
        parts.append(f'<text x="{at:.1f}" y="{y.first + 17}" text-anchor="middle">{tick}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{x.first} {y.last}V{y.first}H{x.last}"/>')
    middle = (x.first + x.last) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle">'
        "right answers to closed questions, % of the base's</text>"
    )
    turned = f'transform="translate(14 {(y.first + y.last) / 2:.1f}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">answers in style, %</text>')
    return parts


def _aims(style: Measure, kept: Measure, x: _Axis, y: _Axis) -> list[str]:
    """The corner where both aims hold."""
    if style.aim is None or kept.aim is None:
        return []
    left, bottom = x.place(kept.aim.value), y.place(style.aim.value)
    return [
        f'<rect class="aim" x="{left:.1f}" y="{y.last}" width="{x.last - left:.1f}" height="{bottom - y.last:.1f}"/>',
        f'<text class="aim-name" x="{x.last:.1f}" y="{y.last - 6}" text-anchor="end">aim</text>',
    ]


def _reach(point: _Point, x: _Axis, y: _Axis) -> list[str]:
    """A mark with its two intervals; each contestant has a shape of its own."""
    kind = point.contestant
    across, up = x.place(point.kept.value), y.place(point.style.value)
    parts = [
        f'<line class="reach {kind}" x1="{x.place(point.kept.low):.1f}" x2="{x.place(point.kept.high):.1f}" '
        f'y1="{up:.1f}" y2="{up:.1f}"/>',
        f'<line class="reach {kind}" x1="{across:.1f}" x2="{across:.1f}" '
        f'y1="{y.place(point.style.low):.1f}" y2="{y.place(point.style.high):.1f}"/>',
    ]
    if kind == PROMPTED:
        parts.append(f'<rect class="{kind}" x="{across - 5:.1f}" y="{up - 5:.1f}" width="10" height="10"/>')
    elif kind == TUNED:
        parts.append(f'<path class="{kind}" d="M{across:.1f} {up - 7:.1f}l7 7-7 7-7-7z"/>')
    else:
        parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{up:.1f}" r="5.5"/>')
    return parts


def _names(points: Sequence[_Point], x: _Axis, y: _Axis) -> list[str]:
    """Labels above the marks' bars (below at the top), towards the middle, moved on where one would cover another."""
    parts = []
    marks = [(x.place(point.kept.value), y.place(point.style.value)) for point in points]
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda item: item.style.value):
        across, up = x.place(point.kept.value), y.place(point.style.value)
        right = across < (x.first + x.last) / 2
        above = up - 2 * LINE - 7 > y.last
        at = up - LINE - 7 if above else up + LINE + 3
        others = [*taken, *(mark for mark in marks if mark != (across, up))]
        while any(abs(at - other) < 2 * LINE and abs(across - beside) < LABEL_WIDTH for beside, other in others):
            at += -LINE if above else LINE
        taken.append((across, at))
        place = f'x="{across + (10 if right else -10):.1f}" text-anchor="{"start" if right else "end"}"'
        figures = f"style {point.style.value:.0f} %, keeps {point.kept.value:.0f} %"
        parts.append(f'<text class="name" {place} y="{at:.1f}">{escape(LABELS[point.contestant])}</text>')
        parts.append(f'<text {place} y="{at + LINE - 1:.1f}">{figures}</text>')
    return parts
