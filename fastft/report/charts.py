"""Line charts as SVG, which every browser, printer and mail program shows without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastft.report.html import Markup, element

Point = tuple[float, float]

# As wide as a phone, so that the text of 11 units is readable there; wider screens show two beside each other.
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 24, 40
# More points than pixels show nothing, and a run of a million steps should fit into an e-mail.
MOST_POINTS = 500
TICKS = 4
# The height of a row of the legend.
ROW = 14
# Between two names of the legend.
GAP = 10


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, its points, and a CSS class. `dots`: a dot at each point."""

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x`, named in the legend once for all marks of the same name.

    `height`: of a short one at the foot; 0 for one from top to bottom.
    """

    x: float
    name: str
    style: str
    height: int = 0


def smoothed(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """The running mean of finite points, each weighing less the further back: over some `share` of them.

    Divided by the sum of its weights, so that it begins at the first point (as Adam corrects its means).
    """
    keep = 1 - 2 / (max(2.0, len(points) * share) + 1)
    total = weight = 0.0
    made = []
    for x, y in points:
        if math.isfinite(y):
            total, weight = keep * total + (1 - keep) * y, keep * weight + 1 - keep
            made.append((x, total / weight))
    return made


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, which still hold the lowest and the highest of each part, and every gap."""
    if len(points) <= most:
        return list(points)
    parts = most // 2
    made: list[Point] = []
    for number in range(parts):
        part = points[number * len(points) // parts : (number + 1) * len(points) // parts]
        finite = [point for point in part if math.isfinite(point[1])]
        if not finite:
            made.append(part[0])
            continue
        low, high = min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])
        made += sorted({low, high})
    return made


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    powers: bool = False,
) -> Markup:
    """A chart of `lines` over x from 0 on; points that are not finite leave a gap.

    `powers`: x is the logarithm to the base of 10 of what is shown, and its ticks are powers of 10.
    """
    drawn = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not drawn:
        return element("p", f"{title}: no figures.")
    x_axis = _Axis.along([x for x, _ in drawn], powers=powers)
    y_axis = _Axis.over([y for _, y in drawn], HEIGHT - BOTTOM, TOP)
    parts = [element("title", title), *_grid(x_axis, y_axis, x_label, y_label)]
    shown = [mark for mark in marks if x_axis.low <= mark.x <= x_axis.high]
    for mark in shown:
        x = f"{x_axis.place(mark.x):.1f}"
        top = HEIGHT - BOTTOM - mark.height if mark.height else TOP
        parts.append(element("line", x1=x, x2=x, y1=top, y2=HEIGHT - BOTTOM, class_=f"mark {mark.style}"))
    for line in lines:
        parts += _curve(line, x_axis, y_axis)
    names = {line.name: f"curve {line.style}" for line in lines} | {mark.name: f"mark {mark.style}" for mark in shown}
    legend, rows = _legend(names) if len(names) > 1 else ([], 1)
    # Further rows of the legend stand above the first one's place.
    above = ROW * (rows - 1)
    parts.append(element("g", *legend, transform=f"translate(0 {-above})"))
    return element("svg", *parts, viewBox=f"0 {-above} {WIDTH} {HEIGHT + above}", role="img", aria_label=title)


def bar_chart(title: str, x_label: str, y_label: str, bars: Sequence[tuple[float, float]]) -> Markup:
    """A histogram: bars (upper end, height) that begin at 0 and touch each other."""
    x_axis = _Axis.over([0.0, *(x for x, _ in bars)], LEFT, WIDTH - RIGHT, whole=True)
    y_axis = _Axis.over([0.0, *(y for _, y in bars)], HEIGHT - BOTTOM, TOP)
    parts = [element("title", title), *_grid(x_axis, y_axis, x_label, y_label)]
    begin = 0.0
    for end, height in bars:
        x, top = x_axis.place(begin), y_axis.place(height)
        size = {"width": f"{max(x_axis.place(end) - x - 1, 0.5):.1f}", "height": f"{HEIGHT - BOTTOM - top:.1f}"}
        parts.append(element("rect", x=f"{x:.1f}", y=f"{top:.1f}", class_="bar", **size))
        begin = end
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)


@dataclass(frozen=True)
class _Axis:
    """The values from `low` to `high` at the places from `start` to `end`, with ticks; `powers`: see `line_chart`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    powers: bool = False

    @classmethod
    def along(cls, values: Sequence[float], *, powers: bool) -> _Axis:
        """The x axis: from 0 on, or over powers of 10."""
        begin = [] if powers else [0.0]
        return replace(cls.over([*begin, *values], LEFT, WIDTH - RIGHT, whole=True), powers=powers)

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, whole: bool = False) -> _Axis:
        low, high = min(values), max(values)
        if low == high:  # a flat curve stands in the middle
            around = abs(low) / 2 or 1.0
            low, high = low - around, high + around
        step = _nice((high - low) / TICKS)
        if whole:
            step = max(1.0, step)
        else:
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        first = math.ceil(low / step - 1e-9)
        count = math.floor((high - first * step) / step + 1e-9) + 1
        return cls(low, high, start, end, tuple((first + number) * step for number in range(count)))

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not below `step`."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        parts.append(element("text", number(tick), x=LEFT - 5, y=f"{y + 4:.1f}", text_anchor="end"))
    for tick in x_axis.ticks:
        x = f"{x_axis.place(tick):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        shown = f"1e{tick:.0f}" if x_axis.powers else number(tick)
        parts.append(element("text", shown, x=x, y=bottom + 16, text_anchor="middle"))
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
    middle = (TOP + bottom) / 2
    turned = f"rotate(-90 11 {middle})"
    parts.append(element("text", y_label, x=11, y=middle, text_anchor="middle", transform=turned))
    return parts


def _curve(line: Line, x_axis: _Axis, y_axis: _Axis) -> list[Markup]:
    points = thinned(line.points)
    pieces: list[str] = []
    pen_is_up = True
    for x, y in points:
        if not math.isfinite(y):
            pen_is_up = True
            continue
        pieces.append(f"{'M' if pen_is_up else 'L'}{x_axis.place(x):.1f} {y_axis.place(y):.1f}")
        pen_is_up = False
    parts = [element("path", d="".join(pieces), class_=f"curve {line.style}")]
    if line.dots or len(pieces) == 1:
        finite = [point for point in points if math.isfinite(point[1])]
        for x, y in finite:
            place = {"cx": f"{x_axis.place(x):.1f}", "cy": f"{y_axis.place(y):.1f}"}
            parts.append(element("circle", r=2.5, class_=f"dot {line.style}", **place))
    return parts


def _legend(names: dict[str, str]) -> tuple[list[Markup], int]:
    """(the name of each curve and mark, how many rows they take), above the chart.

    Wide letters of 11 units of height take 6.6 units.
    """
    parts, x, row = [], 8.0, 0
    for name, style in names.items():
        width = 18 + 6.6 * len(name) + GAP
        if x > 8 and x + width - GAP > WIDTH:
            x, row = 8.0, row + 1
        y = 10 + ROW * row
        parts.append(element("line", x1=x, x2=x + 14, y1=y, y2=y, class_=style))
        parts.append(element("text", name, x=x + 18, y=y + 4))
        x += width
    return parts, row + 1


def number(value: float) -> str:
    """A figure as short as it stays clear: 0.25, 1,200, 2e-04."""
    if value and (abs(value) < 0.001 or abs(value) >= 1e6):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"
