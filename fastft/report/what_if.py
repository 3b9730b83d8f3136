"""Several plans side by side: one row for each value of a key."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fastft.planning.batching import Batching
from fastft.planning.fitting import MemoryForecast, UnknownMemory
from fastft.planning.plan import Plan
from fastft.planning.timing import Time
from fastft.report.units import between, size


def what_if_page(field: str, plans: Sequence[tuple[str, Plan]]) -> Group:
    """What changes with the value of `field`."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("value", "steps", "epochs", "examples a step", "padding", "memory", "time", "disk"):
        table.add_column(heading, justify="right", no_wrap=heading != "examples a step")
    for value, plan in plans:
        table.add_row(value, *_cells(plan))
    first = plans[0][1]
    title = Text(f"{first.recipe} on {first.memory.device}: {field}", style="bold")
    if first.estimate is not None:
        title.append(
            f"\ntokens are ESTIMATED, ±{first.estimate.error:.0%}: {first.estimate.why}", style="not bold yellow"
        )
    return Group(title, table)


def _cells(plan: Plan) -> list[Text]:
    schedule, batching, time = plan.schedule, plan.batching, plan.time
    steps, epochs, examples = schedule.optimizer_steps, schedule.num_train_epochs, schedule.examples_per_optimizer_step
    return [
        Text("?" if steps is None else f"{steps:,}"),
        Text("?" if epochs is None else f"{epochs:.3g}"),
        Text("?" if examples is None else f"{examples:g}"),
        Text(f"{batching.padding.padding_share:.1%}" if isinstance(batching, Batching) else "?"),
        _peak(plan.memory),
        Text(between(time.seconds.low, time.seconds.high) if isinstance(time, Time) else "?"),
        Text(size(plan.disk.needed_bytes), "" if plan.disk.fits else "bold red"),
    ]


def _peak(memory: MemoryForecast | UnknownMemory) -> Text:
    if isinstance(memory, UnknownMemory):
        return Text("?")
    shown = size(memory.peak.peak_bytes)
    return Text(shown) if memory.peak.fits else Text(f"{shown} too much", "bold red")
