"""Sizes, durations and curves as people read them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as at most `width` block characters, each the mean of an equal part; skips infinite and NaN values."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    columns = min(width, len(finite))
    edges = [round(index * len(finite) / columns) for index in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[int((mean - low) / span * (len(_BARS) - 1)) if span else 0] for mean in means)


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def between(low: float, high: float) -> str:
    """Two durations for people, once where they read the same: 2 h 10 min to 3 h 20 min."""
    one, other = duration(low), duration(high)
    return one if one == other else f"{one} to {other}"


def size(count: float) -> str:
    """Bytes with a binary unit: 512 B, 84 MiB, 5.70 GiB."""
    step, unit, digits = _unit(count)
    return f"{count / step:.{digits}f} {unit}"


def share(done: float, total: float) -> str:
    """Bytes of bytes, in the unit of `total`, and the percentage: 1.20 of 3.40 GiB (35 %)."""
    step, unit, digits = _unit(total)
    percentage = int(100 * done / total) if total else 100
    return f"{done / step:.{digits}f} of {total / step:.{digits}f} {unit} ({percentage} %)"


def _unit(count: float) -> tuple[int, str, int]:
    """(bytes, name, decimals) of the unit that suits `count` bytes."""
    for power, unit in enumerate(("B", "KiB", "MiB")):
        if count < 1024 ** (power + 1):
            return 1024**power, unit, 0
    return 1024**3, "GiB", 2
