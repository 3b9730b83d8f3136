"""A plan for people: the schedule, the choices with their reasons, the literal calls."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastft.plan.disk import Disk
from fastft.plan.plan import Plan
from fastft.report.live import size


def plan_page(plan: Plan) -> Group:
    """The plan as one page."""
    parts: list[Any] = [_title(plan), Text(), _schedule(plan), Text()]
    parts += [Text("decided here", style="italic"), _choices(plan), Text(), _calls(plan)]
    for warning in plan.warnings:
        parts.append(Text(f"! {warning}", style="yellow"))
    if plan.obstacles:
        parts += [Text(), Text("This machine cannot run it:", style="bold red")]
        parts += [Padding(Text(str(problem)), (0, 0, 0, 2)) for problem in plan.obstacles]
    return Group(*parts)


def _title(plan: Plan) -> Text:
    return Text.assemble(
        (plan.recipe, "bold"), f": {plan.base_model} with {plan.engine} on {plan.device}", overflow="fold"
    )


def _schedule(plan: Plan) -> Table:
    schedule, disk = plan.schedule, plan.disk
    unknown = "known when the rows are read"
    rows = [
        ("training examples", _count(schedule.train_examples, unknown)),
        ("held-out examples", _count(schedule.eval_examples, "none")),
        ("examples per optimizer step", _batch(plan)),
        ("micro-batches per epoch", _count(schedule.micro_batches_per_epoch, unknown)),
        ("optimizer steps per epoch", _count(schedule.optimizer_steps_per_epoch, unknown)),
        ("optimizer steps", _count(schedule.optimizer_steps, unknown)),
        ("epochs", unknown if schedule.num_train_epochs is None else f"{schedule.num_train_epochs:.4g}"),
        ("warm-up steps", _count(schedule.warmup_steps, unknown)),
        ("trained weights", _count(disk.adapter_weights, "known when the base model is here")),
        ("disk", f"{_extent(disk)} {size(disk.needed_bytes)} of {size(disk.free_bytes)} free"),
    ]
    grid = Table.grid(padding=(0, 3))
    grid.add_column(style="dim")
    grid.add_column(justify="left")
    for name, text in rows:
        grid.add_row(name, text)
    return grid


def _batch(plan: Plan) -> str:
    schedule = plan.schedule
    accumulation = schedule.gradient_accumulation_steps
    if accumulation is None or schedule.examples_per_optimizer_step is None:
        return "known when the rows are tokenized"
    product = f"{schedule.per_device_train_batch_size} x {accumulation} accumulated x {schedule.devices} device"
    return f"{schedule.examples_per_optimizer_step:g} ({product}{'s' if schedule.devices > 1 else ''})"


def _extent(disk: Disk) -> str:
    return "more than" if None in (disk.checkpoints_bytes, disk.export_bytes) else "up to"


def _count(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}"


def _choices(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(style="dim")
    for key, choice in plan.choices.items():
        table.add_row(key.partition(".")[2], Text(_shown(choice.value)), Text(choice.reason))
    return table


def _calls(plan: Plan) -> Group:
    parts: list[Any] = [Text("upstream calls", style="italic")]
    for call in plan.calls:
        parts.append(Text(f"{call.name}(", style="cyan"))
        # Never wrapped: a call can be pasted.
        parts += [_line(f"    {key}={value!r},") for key, value in call.kwargs.items()]
        parts.append(Text(")", style="cyan"))
    return Group(*parts)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ignore")


def _shown(value: object) -> str:
    return "later" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
