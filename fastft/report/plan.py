"""A plan on one screen: steps, padding, memory, time, disk, choices, cautions and obstacles."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastft.planning.memory import Memory
from fastft.planning.plan import Plan
from fastft.report.units import duration, size

BAR = 16
# The names of the memory parts on the screen.
PARTS = {
    "base_weights": "base",
    "kept_weights": "kept in 16 bit",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logits": "logits",
    "workspace": "workspace",
    "framework": "framework",
}


def plan_page(plan: Plan, *, with_calls: bool = False) -> Group:
    """The plan as one page; `with_calls` adds the literal upstream calls at the end."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column()
    for name, part in (
        ("steps", _steps(plan)),
        ("padding", _padding(plan)),
        ("memory", _memory(plan)),
        ("time", _time(plan)),
        ("disk", _disk(plan)),
    ):
        grid.add_row(name, part)
    parts: list[Any] = [_title(plan), grid, *_choices(plan)]
    for caution in plan.warnings:
        text = Text.assemble((f"! {caution.says}", "yellow"), (f" ({caution.reason}; {caution.source})", "dim"))
        parts.append(text)
    if plan.obstacles:
        parts.append(Text("This machine cannot run it:", style="bold red"))
        parts += [Padding(Text(str(problem)), (0, 0, 0, 2)) for problem in plan.obstacles]
    if with_calls:
        parts += [Text(), _calls(plan)]
    return Group(*parts)


def _title(plan: Plan) -> Text:
    return Text.assemble(
        (plan.recipe, "bold"), f": {plan.base_model} with {plan.engine} on {plan.memory.device}", overflow="fold"
    )


def _steps(plan: Plan) -> Text:
    schedule = plan.schedule
    batch, accumulation = schedule.per_device_train_batch_size, schedule.gradient_accumulation_steps
    examples = schedule.examples_per_optimizer_step
    devices = f"{schedule.devices} device{'s' * (schedule.devices > 1)}"
    each = "?" if examples is None else f"{examples:g}"
    lines = []
    if schedule.optimizer_steps is None or schedule.optimizer_steps_per_epoch is None:
        known = schedule.optimizer_steps
        lines.append("known when the rows are tokenized" if known is None else f"{known:,} of {each} examples")
    else:
        per_epoch, epochs = schedule.optimizer_steps_per_epoch, schedule.num_train_epochs
        passes = "1 epoch" if epochs == 1 else f"{epochs:.4g} epochs"
        lines.append(f"{schedule.optimizer_steps:,} = {passes} x {per_epoch:,} steps of {each} examples")
    tokens = schedule.tokens_per_optimizer_step
    lines.append(
        f"{batch} x {'later' if accumulation is None else accumulation} accumulated x {devices}"
        + ("" if tokens is None else f", {tokens:,} tokens a step")
    )
    rows = _count(schedule.train_rows, "an unknown number of")
    of = (
        ""
        if schedule.train_rows == schedule.train_examples
        else f" from {_count(schedule.train_examples, '?')} examples"
    )
    ends = [f"{_count(schedule.warmup_steps, '?')} warm-up steps"]
    ends += [] if not schedule.evaluations else [f"{schedule.evaluations} evaluations"]
    ends += [] if not schedule.checkpoints else [f"{schedule.checkpoints} checkpoints"]
    lines.append(f"{rows} rows{of}, {_count(schedule.eval_examples, 'none')} held out; {', '.join(ends)}")
    return Text("\n".join(lines))


def _padding(plan: Plan) -> Group:
    batching, batch = plan.batching, plan.schedule.per_device_train_batch_size
    if batching.lengths is None:
        return Group(Text(f"{batching.active}: {batching.active_because}"), Text(batching.recommended_because, "dim"))
    grid = Table.grid(padding=(0, 1))
    for _ in range(5):
        grid.add_column(no_wrap=True)
    for row in (row for row in batching.table if row.batch == batch):
        active = "◂ active" if row.mode == batching.active else "" if row.mode in batching.available else "not here"
        useful = round(BAR * (1 - row.padding_share))
        style = "bold" if row.mode == batching.active else ""
        grid.add_row(
            Text(row.mode, style),
            Text.assemble(("█" * useful, "green"), ("░" * (BAR - useful), "red")),
            Text(f"{row.padding_share:.1%} padding", style, justify="right"),
            Text(f"{row.useful_tokens:,.0f} tokens", style, justify="right"),
            Text(active, "bold" if active.startswith("◂") else "dim"),
        )
    shares = [f"{row.batch}: {row.padding_share:.0%}" for row in batching.table if row.mode == "random"]
    lengths = batching.lengths
    note = f"rows of {lengths.median} tokens (median), 90 % up to {lengths.p90}, longest {lengths.longest}; "
    if batching.recommended == batching.active or batching.speed_up is None:
        note += batching.active_because
    else:
        note += f"{batching.recommended} would be {batching.speed_up:.2f} times as fast"
    return Group(grid, Text(f"random by batch: {', '.join(shares)}", "dim"), Text(note, "dim"))


def _memory(plan: Plan) -> Group:
    forecast = plan.memory
    memory, fitting = forecast.memory, forecast.fitting
    if memory is None or fitting is None:
        return Group(Text(forecast.missing))
    share = memory.peak_bytes / memory.device_bytes
    full = min(BAR, round(BAR * share))
    verdict = ("fits", "bold green") if memory.fits else ("DOES NOT FIT", "bold red")
    head = Text.assemble(
        ("█" * full, "green" if share <= 0.9 else "red"),
        ("░" * (BAR - full), "dim"),
        f" {size(memory.peak_bytes)} of {size(memory.device_bytes)} ({share:.0%}) ",
        verdict,
    )
    needs = [
        "checkpointing is needed" if fitting.needs_checkpointing else "checkpointing is not needed",
        *(["4-bit is needed"] if fitting.needs_4bit else []),
    ]
    room = f"room for batch {fitting.largest_batch:,} or rows of {fitting.longest_row:,} tokens; {', '.join(needs)}"
    if not fitting.largest_batch:
        room = f"not even one row fits; rows of up to {fitting.longest_row:,} tokens would"
    what = f"at {memory.tokens:,} tokens ({forecast.micro_batch}): {_parts(memory)}"
    return Group(head, Text(what, "dim"), Text(room + _target(plan)))


def _parts(memory: Memory) -> str:
    """The parts above 2 % of the peak, largest first, and the sum of the others."""
    large = {name: value for name, value in memory.parts.items() if value > memory.peak_bytes / 50}
    rest = memory.peak_bytes - sum(large.values())
    shown = [f"{PARTS[name]} {size(value)}" for name, value in sorted(large.items(), key=lambda part: -part[1])]
    return ", ".join([*shown, *([f"other {size(rest)}"] if rest else [])])


def _target(plan: Plan) -> str:
    fitting, batch = plan.memory.fitting, plan.schedule.per_device_train_batch_size
    if fitting is None or fitting.target_batch is None or fitting.target_batch == batch:
        return ""
    return f"; the same step as {fitting.target_batch} x {fitting.target_accumulation}"


def _time(plan: Plan) -> Text:
    time = plan.time
    if time.seconds is None:
        return Text(f"unknown: {time.assumption}")
    price = "" if time.price is None else f", costs {time.price:,.2f}"
    work = "" if time.flops_per_token is None else f"{time.flops_per_token / 1e9:.3g} GFLOP a token"
    share = "" if time.attention_share is None else f" ({time.attention_share:.0%} attention)"
    head = f"about {duration(time.seconds)} of training at {time.tokens_per_second:,.0f} tokens/s{price}"
    return Text.assemble(head, "\n", (f"{work}{share}; {time.assumption}", "dim"))


def _disk(plan: Plan) -> Text:
    disk = plan.disk
    parts = {
        "checkpoints": disk.checkpoints_bytes,
        "adapter": disk.adapter_bytes,
        "merged": disk.merged_bytes,
        "GGUF": disk.gguf_bytes,
    }
    shown = ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)
    extent = "more than" if None in parts.values() else "up to"
    free = ("", "") if disk.fits else (" TOO LITTLE", "bold red")
    line = f"{extent} {size(disk.needed_bytes)} of {size(disk.free_bytes)} free"
    return Text.assemble(line, free, f": {shown}" if shown else "")


def _choices(plan: Plan) -> list[Text]:
    return [
        Text.assemble(
            (key.partition(".")[2], "cyan"), " = ", (_shown(choice.value), "bold"), (f": {choice.reason}", "dim")
        )
        for key, choice in plan.choices.items()
    ]


def _calls(plan: Plan) -> Group:
    parts: list[Any] = [Text("upstream calls", style="italic")]
    for call in plan.calls:
        parts.append(Text(f"{call.name}(", style="cyan"))
        # Never wrapped, so that a call can be copied.
        parts += [Text(f"    {key}={value!r},", no_wrap=True, overflow="ignore") for key, value in call.kwargs.items()]
        parts.append(Text(")", style="cyan"))
    return Group(*parts)


def _count(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}"


def _shown(value: object) -> str:
    return "later" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
