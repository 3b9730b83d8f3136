"""A run on several GPUs and hosts: the row that was asked for, and the table by number of GPUs."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastft.planning.plan import Plan
from fastft.planning.scaling import PAYS, Point, Scaling
from fastft.planning.timing import Interval
from fastft.report.units import between, duration, size


def scaling_page(plan: Plan, scaling: Scaling) -> Group:
    """The row that was asked for in words, the table, and where one more GPU stops paying.

    In the table, `exchange` is the share of communication in a step, `works` the efficiency, `adds` the gain of a GPU.
    """
    layout, asked = scaling.layout, scaling.asked
    hosts = "1 host" if layout.hosts == 1 else f"{layout.hosts} hosts"
    head = f"{plan.recipe}: {plan.base_model} on {hosts} x {layout.per_host} {plan.memory.device}"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column()
    grid.add_row("shared", f"{layout.sharding.name} with {plan.engine}; {layout.network}")
    grid.add_row("batch", f"{_batch(asked)} x {asked.ranks} GPUs for {scaling.rows_per_step} rows a step")
    grid.add_row("memory", _memory(asked))
    compute, communication = asked.compute.likely, asked.communication.likely
    grid.add_row("step", f"{compute:.3g} s compute + {communication:.3g} s communication")
    costs = "" if asked.price is None else f", costs {_price(asked.price)}"
    took = between(asked.seconds.low, asked.seconds.high)
    grid.add_row("time", f"{took}, {asked.speed_up:.1f} times as fast as one ({asked.efficiency:.0%}){costs}")
    parts: list[RenderableType] = [
        Text(head, style="bold"),
        grid,
        Text(),
        _table(scaling),
        Text(),
        Text(_verdict(scaling)),
    ]
    if plan.estimate is not None:
        parts.append(Text(f"tokens are ESTIMATED, ±{plan.estimate.error:.0%}: {plan.estimate.why}", style="yellow"))
    if not scaling.step_is_kept:
        rows = scaling.rows_per_step
        says = f"! write effective_batch_size = {rows} in [train]: without it the step grows with the number of GPUs"
        parts.append(Text(says, style="yellow"))
    return Group(*parts)


def _table(scaling: Scaling) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("GPUs", "batch", "memory", "step", "exchange", "time", "works", "adds", "price"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in scaling.points:
        memory, step = point.memory, point.compute.likely + point.communication.likely
        shown = size(memory.peak_bytes)
        table.add_row(
            str(point.ranks),
            _batch(point),
            Text(shown) if memory.fits else Text(f"{shown} too much", "bold red"),
            f"{step:.3g} s",
            f"{point.communication.likely / step:.0%}",
            duration(point.seconds.likely),
            f"{point.efficiency:.0%}",
            "" if point.ranks == 1 else f"{point.gain:.2f}",
            "" if point.price is None else f"{point.price.likely:,.2f}",
        )
    return table


def _verdict(scaling: Scaling) -> str:
    last, rows = scaling.points[-1], scaling.rows_per_step
    bound = f"an optimizer step has {rows} rows, work for at most {rows} GPUs"
    if scaling.best == last.ranks:
        return f"Each GPU up to {last.ranks} pays; {bound}."
    return f"One more GPU stops paying after {scaling.best}: from there each adds less than {PAYS:g} of one; {bound}."


def _memory(point: Point) -> str:
    memory = point.memory
    parts = {
        "weights": memory.weights_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer": memory.optimizer_bytes,
        "buffers": memory.buffers_bytes,
        "activations and framework": memory.working_bytes,
    }
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    shown = ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)
    return f"{size(memory.peak_bytes)} of {size(memory.device_bytes)} a rank, {verdict}: {shown}"


def _batch(point: Point) -> str:
    return f"{point.batch} x {point.accumulation}"


def _price(price: Interval) -> str:
    return f"{price.low:,.2f} to {price.high:,.2f}"
