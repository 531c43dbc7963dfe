"""A small chart: axes, lines, marks with intervals, a table of cells; the same bytes of SVG for the same figures.

A chart brings its own colours for light and dark grounds, so it stands alone or inside a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

SERIES = 6
"""Colours for lines; more lines begin again."""
NAMES_A_ROW, NAME_LINE = 3, 17
STYLE = """
.mw { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; max-width: 100%; }
.mw text { fill: #545c68; } .mw .strong { fill: #15181d; font-weight: 600; }
.mw .grid { stroke: #e2e5ea; } .mw .axis { stroke: #8b95a5; fill: none; }
.mw .guide { stroke: #8b95a5; stroke-dasharray: 4 4; fill: none; } .mw .aim { fill: #18734a; fill-opacity: .1; }
.mw .cell { fill: #2458c7; } .mw .off { fill: #b9252f; } .mw .count { fill: #15181d; }
.mw .line { fill: none; stroke-width: 2; } .mw .reach { stroke-width: 1; stroke-opacity: .55; }
.mw .s0 { stroke: #2458c7; fill: #2458c7; } .mw .s1 { stroke: #b26a10; fill: #b26a10; }
.mw .s2 { stroke: #18734a; fill: #18734a; } .mw .s3 { stroke: #8a3ca8; fill: #8a3ca8; }
.mw .s4 { stroke: #b9252f; fill: #b9252f; } .mw .s5 { stroke: #59636f; fill: #59636f; }
.mw .line.s0, .mw .line.s1, .mw .line.s2, .mw .line.s3, .mw .line.s4, .mw .line.s5 { fill: none; }
@media (prefers-color-scheme: dark) {
.mw text { fill: #9da6b3; } .mw .strong, .mw .count { fill: #e7e9ed; }
.mw .grid { stroke: #272c34; } .mw .axis, .mw .guide { stroke: #77818f; } .mw .aim { fill: #5cc690; }
.mw .cell { fill: #82aaff; } .mw .off { fill: #ff8589; }
.mw .s0 { stroke: #82aaff; fill: #82aaff; } .mw .s1 { stroke: #f0b35c; fill: #f0b35c; }
.mw .s2 { stroke: #5cc690; fill: #5cc690; } .mw .s3 { stroke: #d59aee; fill: #d59aee; }
.mw .s4 { stroke: #ff8589; fill: #ff8589; } .mw .s5 { stroke: #a3adba; fill: #a3adba; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from `least` to `most` with ticks and a name that says the unit."""

    name: str
    least: float = 0.0
    most: float = 1.0
    ticks: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1, kept inside."""
        return min(max((value - self.least) / (self.most - self.least), 0.0), 1.0)


def axis_to(most: float, name: str) -> Axis:
    """An axis from zero to a round number at or above `most`, with about five ticks."""
    step = 1.0
    while step * 5 < most:
        step *= 10
    while step * 5 >= 10 * most > 0:
        step /= 10
    step = next(part * step for part in (0.1, 0.2, 0.25, 0.5, 1.0) if part * step * 5 >= most)
    return Axis(name=name, most=5 * step, ticks=tuple(round(step * index, 10) for index in range(6)))


@dataclass(kw_only=True)
class Chart:
    """A picture under way. Coordinates are values of the axes; `names` are those of the series, shown above."""

    title: str
    x: Axis
    y: Axis
    width: int = 420
    height: int = 300
    names: tuple[str, ...] = ()
    parts: list[str] = field(default_factory=list)
    left: int = 52
    right: int = 14
    bottom: int = 44

    @property
    def top(self) -> int:
        """Room above the plot: the names of the series, three in a row."""
        return 14 + NAME_LINE * -(-len(self.names) // NAMES_A_ROW)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point in the picture."""
        across = self.left + self.x.share(x) * (self.width - self.left - self.right)
        return across, self.height - self.bottom - self.y.share(y) * (self.height - self.top - self.bottom)

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Points joined; `kind` is a class such as `s0` or `guide`."""
        if not points:
            return
        way = "L".join(f"{across:.1f} {up:.1f}" for across, up in (self.at(*point) for point in points))
        self.parts.append(f'<path class="{kind if kind == "guide" else f"line {kind}"}" d="M{way}"/>')

    def mark(self, x: float, y: float, kind: str, *, low: float | None = None, high: float | None = None) -> None:
        """A dot, with an upright bar for its interval."""
        across, up = self.at(x, y)
        if low is not None and high is not None:
            self.parts.append(
                f'<path class="reach {kind}" d="M{across:.1f} {self.at(x, low)[1]:.1f}V{self.at(x, high)[1]:.1f}"/>'
            )
        self.parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{up:.1f}" r="3"/>')

    def note(self, x: float, y: float, text: str, *, anchor: str = "start", dy: float = -5) -> None:
        """A word at a point."""
        across, up = self.at(x, y)
        self.parts.append(f'<text x="{across:.1f}" y="{up + dy:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> str:
        """The whole picture."""
        return wrap([*self._frame(), *self.parts, *self._legend()], self.width, self.height, self.title)

    def _frame(self) -> list[str]:
        (first, low), (last, high) = self.at(self.x.least, self.y.least), self.at(self.x.most, self.y.most)
        parts = []
        for tick in self.y.ticks:
            up = self.at(self.x.least, tick)[1]
            parts.append(f'<line class="grid" x1="{first:.1f}" x2="{last:.1f}" y1="{up:.1f}" y2="{up:.1f}"/>')
            parts.append(f'<text x="{first - 7:.1f}" y="{up + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in self.x.ticks:
            across = self.at(tick, self.y.least)[0]
            parts.append(f'<text x="{across:.1f}" y="{low + 16:.1f}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<path class="axis" d="M{first:.1f} {high:.1f}V{low:.1f}H{last:.1f}"/>')
        middle = (first + last) / 2
        parts.append(f'<text x="{middle:.1f}" y="{self.height - 8}" text-anchor="middle">{escape(self.x.name)}</text>')
        turn = f'transform="translate(13 {(low + high) / 2:.1f}) rotate(-90)"'
        parts.append(f'<text {turn} text-anchor="middle">{escape(self.y.name)}</text>')
        return parts

    def _legend(self) -> list[str]:
        parts = []
        wide = (self.width - self.left - self.right) // NAMES_A_ROW
        for index, name in enumerate(self.names):
            down, across = divmod(index, NAMES_A_ROW)
            x, y = self.left + across * wide, 14 + NAME_LINE * down
            parts.append(f'<circle class="s{index % SERIES}" cx="{x + 5}" cy="{y - 4}" r="4"/>')
            parts.append(f'<text class="strong" x="{x + 14}" y="{y}">{escape(name)}</text>')
        return parts


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Counts of rows by columns; `on` says which cell of a row is the right one."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    cell: int = 26
    left: int = 170
    top: int = 150

    def svg(self) -> str:
        """The counts as shades of their row: blue where row and column agree, red elsewhere."""
        parts = []
        for across, name in enumerate(self.columns):
            x = self.left + across * self.cell + self.cell / 2 + 4
            parts.append(f'<text transform="translate({x:.1f} {self.top - 6}) rotate(-55)">{escape(name)}</text>')
        for down, (name, counts) in enumerate(zip(self.rows, self.counts, strict=True)):
            y, total = self.top + down * self.cell, max(1, sum(counts))
            parts.append(f'<text x="{self.left - 8}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
            for across, count in enumerate(counts):
                x = self.left + across * self.cell
                parts.append(f'<path class="grid" fill="none" d="M{x} {y}h{self.cell}v{self.cell}h-{self.cell}z"/>')
                if count:
                    kind = "cell" if self.columns[across] == name else "off"
                    shade = 0.12 + 0.68 * count / total
                    parts.append(
                        f'<rect class="{kind}" fill-opacity="{shade:.2f}" x="{x + 1}" y="{y + 1}" '
                        f'width="{self.cell - 2}" height="{self.cell - 2}"/>'
                    )
                    middle = x + self.cell / 2
                    parts.append(
                        f'<text class="count" x="{middle:.1f}" y="{y + 17}" text-anchor="middle">{count}</text>'
                    )
        width = self.left + self.cell * len(self.columns) + 90
        return wrap(parts, width, self.top + self.cell * len(self.rows) + 8, self.title)


def wrap(parts: Sequence[str], width: int, height: int, title: str) -> str:
    """Parts as one SVG with its colours and a title that says what it shows."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" class="mw" '
        f'role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n"
    )
