"""A measure before and after training in words: its values, its change with the interval, and what that says."""

from __future__ import annotations

from fastft.runs.intervals import Interval
from fastft.runs.measured import Compared

METHODS = (
    "Of yes and no it is Tango's score interval, of other shares Student's t, of losses and lengths Student's t"
    " corrected for skewness (Hall). Rough: a few rows make most of the change, and the interval may be too narrow."
    " Changes of shares are in points."
)


def value_of(one: Compared, value: float | None) -> str:
    """A value in the unit of its measure: 49 of 50 answers are 98.0 %."""
    if value is None:
        return ""
    unit = one.measure.unit
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if unit == "tokens" else f"{value:,.4g}" if unit == "perplexity" else f"{value:.4f}"


def change_of(one: Compared) -> str:
    """The difference and its interval, in the unit of the measure (of shares, points); of perplexity the factor."""
    if one.before is None or one.difference is None:
        return ""
    if one.measure.unit == "perplexity":
        factor = f"× {one.after / one.before:.3g}"
        return factor if one.interval is None else f"{factor} ({one.interval.low:.3g} to {one.interval.high:.3g})"
    return _with_interval(one.measure.unit, one.difference, one.interval)


def _with_interval(unit: str, difference: float, interval: Interval | None) -> str:
    scale, digits = {"share": (100, 1), "tokens": (1, 1)}.get(unit, (1, 3))
    text = f"{scale * difference:+.{digits}f}"
    if interval is None:
        return text
    return f"{text} ({scale * interval.low:+.{digits}f} to {scale * interval.high:+.{digits}f})"


def verdict_of(one: Compared) -> str:
    """What the interval says, and where it says nothing, how many rows would tell."""
    if one.before is None or one.interval is None:
        return ""
    rough = ", rough" if one.interval.is_rough else ""
    if one.word != "cannot tell":
        return one.word + rough
    needed = one.rows_that_would_tell
    return "cannot tell" + (f"; {needed:,} rows would" if needed else "") + rough
