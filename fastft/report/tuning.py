"""What `fastft tune` measured, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fastft.planning.fitting import TARGET_SHARE
from fastft.planning.learning_rates import RangeTest, mean_losses
from fastft.planning.probes import Probe, SetUp
from fastft.report.units import size, sparkline


def tuning_page(probes: Sequence[Probe], forecast: Mapping[SetUp, float], best: SetUp | None) -> Group:
    """A row for each probe, the fastest first, with the forecast's tokens a second; `best` is bold."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("set-up", no_wrap=True)
    for heading in ("tokens/s", "forecast", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for probe in sorted(probes, key=lambda each: -(each.tokens_per_second or 0.0)):
        table.add_row(*_cells(probe, forecast.get(probe.set_up)), style="bold" if probe.set_up == best else "")
    failed = dict.fromkeys(probe.wrong for probe in probes if probe.wrong and not probe.out_of_memory)
    return Group(table, *(Text(f"failed: {wrong}", "red") for wrong in failed))


def rates_page(test: RangeTest) -> Text:
    """The curve as a line of blocks, the suggested rate and its reason."""
    means = mean_losses([point.loss for point in test.points if math.isfinite(point.loss)])
    first, last = test.points[0].learning_rate, test.points[-1].learning_rate
    curve = Text(f"loss {sparkline(means, len(means))}  rates {first:.0e} to {last:.0e}\n")
    if test.suggested is None:
        return curve + Text(f"no suggestion: {test.reason}", "yellow")
    return curve + Text(f"learning_rate = {test.suggested:.1e}", "bold") + Text(f": {test.reason}")


def _cells(probe: Probe, forecast: float | None) -> tuple[str, str, str, str, Text]:
    rate = "-" if probe.tokens_per_second is None else f"{probe.tokens_per_second:,.0f}"
    peak = "-" if probe.peak_bytes is None else size(probe.peak_bytes)
    return probe.set_up.words, rate, "?" if forecast is None else f"{forecast:,.0f}", peak, _note(probe)


def _note(probe: Probe) -> Text:
    if probe.out_of_memory:
        return Text("out of memory", "yellow")
    if probe.wrong:
        return Text("failed", "red")
    full = probe.peak_bytes is not None and probe.peak_bytes > TARGET_SHARE * probe.limit_bytes
    return Text(f"over {TARGET_SHARE:.0%}", "yellow") if full else Text()
