"""A run as one SVG picture for a README or a slide: its verdict, its figures, its loss. Light and dark, no scripts."""

from __future__ import annotations

import textwrap

from fastft.report.curves import loss_chart
from fastft.report.figures import change_of, value_of
from fastft.report.html import Markup, element
from fastft.report.style import STYLE
from fastft.report.units import duration, size
from fastft.runs.directory import RunDir
from fastft.runs.history import read_history
from fastft.runs.measured import compared
from fastft.runs.state import state_of
from fastft.runs.verdict import judge

WIDTH, CHART = 860, 400
MARGIN, LINE = 20, 22
# Letters of a line of the verdict at its size of 16 units: wide ones take 10 units.
VERDICT_LETTERS = 80
# Where the columns of the figures end.
COLUMNS = (250, 330, 430)


def picture(run: RunDir) -> str:
    """The picture of a run as SVG.

    Raises:
        MachineError: a record of the run is damaged.
    """
    result, history = run.result, read_history(run)
    if result is None:
        state, why = state_of(run)
        verdict, colour, rows = f"{state.capitalize()}{': ' + why if why else ''}", "two", []
    else:
        judged = judge(result)
        verdict, colour = f"{judged}.", {"better": "three", "worse": "five"}.get(judged.word, "four")
        rows = [
            (each.measure.title, value_of(each, each.before), value_of(each, each.after))
            for each in compared(result)
            if change_of(each)
        ]
        rows += [
            ("optimizer steps", "", f"{result.steps:,}"),
            ("whole run", "", duration(result.total_seconds)),
            ("peak memory", "", size(result.peak_memory_bytes)),
        ]
    lines = textwrap.wrap(verdict, VERDICT_LETTERS) or [""]
    top = MARGIN + LINE * len(lines) + 20
    height = max(top + LINE * (len(rows) + 1), top + CHART * 0.6) + MARGIN
    parts = [element("title", verdict), element("style", Markup(STYLE + _OWN))]
    parts.append(element("rect", width=WIDTH, height=f"{height:.0f}", class_="page"))
    bar = {"x": MARGIN - 10, "y": MARGIN - 4, "width": 4, "height": LINE * len(lines)}
    parts.append(element("rect", class_=f"dot {colour}", **bar))
    parts += [
        element("text", line, x=MARGIN, y=MARGIN + 12 + LINE * number, class_="verdict")
        for number, line in enumerate(lines)
    ]
    parts += _figures(rows, top)
    chart = loss_chart(history) if history.steps else Markup("")
    where = f"translate({COLUMNS[2] + MARGIN} {top - 6})"
    inner = chart.replace("<svg ", f'<svg width="{WIDTH - COLUMNS[2] - 2 * MARGIN}" height="240" ', 1)
    parts.append(element("g", Markup(inner), transform=where))
    box = f"0 0 {WIDTH} {height:.0f}"
    return (
        element("svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img", aria_label=verdict) + "\n"
    )


_OWN = """
.page { fill: var(--page); } svg text.verdict { font-size: 16px; font-weight: 600; }
svg text.figure { font-size: 13px; } svg text.head { font-size: 13px; fill: var(--soft); }
"""


def _figures(rows: list[tuple[str, str, str]], top: int) -> list[Markup]:
    """The table of figures; without rows nothing."""
    if not rows:
        return []
    parts = [
        element("text", name, x=x, y=top, class_="head", text_anchor="end")
        for name, x in zip(("before", "after"), (COLUMNS[1], COLUMNS[2]), strict=True)
    ]
    for number, (name, before, after) in enumerate(rows, start=1):
        y = top + LINE * number
        parts.append(element("text", name, x=MARGIN, y=y, class_="figure"))
        for text, x in ((before, COLUMNS[1]), (after, COLUMNS[2])):
            parts.append(element("text", text, x=x, y=y, class_="figure", text_anchor="end"))
    return parts
