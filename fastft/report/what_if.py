"""Several plans side by side: one row for each value of a key."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fastft.planning.plan import Plan
from fastft.report.units import duration, size


def what_if_page(field: str, plans: Sequence[tuple[str, Plan]]) -> Group:
    """What changes with the value of `field`."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("value", "steps", "epochs", "examples a step", "padding", "memory", "time", "disk"):
        table.add_column(heading, justify="right", no_wrap=heading != "examples a step")
    for value, plan in plans:
        table.add_row(value, *_cells(plan))
    first = plans[0][1]
    return Group(Text(f"{first.recipe} on {first.memory.device}: {field}", style="bold"), table)


def _cells(plan: Plan) -> list[Text]:
    schedule, memory = plan.schedule, plan.memory
    row = plan.batching.at(plan.batching.active, schedule.per_device_train_batch_size)
    peak = Text("?") if memory.peak_bytes is None else Text(size(memory.peak_bytes), "" if memory.fits else "bold red")
    if memory.fits is False:
        peak.append(" too much")
    steps, epochs, examples = schedule.optimizer_steps, schedule.num_train_epochs, schedule.examples_per_optimizer_step
    return [
        Text("?" if steps is None else f"{steps:,}"),
        Text("?" if epochs is None else f"{epochs:.3g}"),
        Text("?" if examples is None else f"{examples:g}"),
        Text("?" if row is None else f"{row.padding_share:.1%}"),
        peak,
        Text("?" if plan.time.seconds is None else duration(plan.time.seconds)),
        Text(size(plan.disk.needed_bytes), "" if plan.disk.fits else "bold red"),
    ]
