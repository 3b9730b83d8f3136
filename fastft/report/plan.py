"""A plan on one screen: steps, padding, memory, time, disk, choices, cautions and obstacles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastft.planning.batching import Batching, UnknownBatching
from fastft.planning.fitting import UnknownMemory
from fastft.planning.memory import PeakMemory
from fastft.planning.plan import Plan
from fastft.planning.schedule import UnknownSchedule
from fastft.planning.timing import UnknownTime
from fastft.report.units import between, duration, size

BAR = 16
# The columns that a line of padding takes with its bar.
WIDE = 68
# The memory parts that have another name on the screen.
PARTS = {"base_weights": "base", "kept_weights": "kept in 16 bit"}


def plan_page(plan: Plan, *, with_calls: bool = False) -> Group:
    """The plan as one page; `with_calls` adds the literal upstream calls at the end."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column()
    if plan.task != "sft":
        grid.add_row("task", _task(plan))
    grid.add_row("steps", _steps(plan))
    grid.add_row("padding", _padding(plan))
    grid.add_row("memory", _memory(plan))
    grid.add_row("time", _time(plan))
    grid.add_row("disk", _disk(plan))
    what = f": {plan.base_model} with {plan.engine} on {plan.memory.device}"
    parts: list[Any] = [Text.assemble((plan.recipe, "bold"), what, overflow="fold"), grid, *_choices(plan)]
    for caution in plan.warnings:
        why = f" ({caution.reason}; {caution.source})"
        parts.append(Text.assemble((f"! {caution.says}", "yellow"), (why, "dim")))
    if plan.obstacles:
        parts.append(Text("This machine cannot run it:", style="bold red"))
        parts += [Padding(Text(str(problem)), (0, 0, 0, 2)) for problem in plan.obstacles]
    if with_calls:
        parts += [Text(), _calls(plan)]
    return Group(*parts)


def _task(plan: Plan) -> Text:
    """The task, its labels, and what is trained."""
    if plan.task == "preference":
        return Text(f"{plan.task}, {'every weight' if plan.calls.adapter is None else 'an adapter'}")
    names = plan.calls.load.kwargs.get("id2label", {}).values()
    labels = f"{len(names)} labels: {', '.join(list(names)[:12])}" if names else "labels known when the rows are read"
    trained = "every weight and the head" if plan.calls.adapter is None else "an adapter and the head score"
    return Text(f"{plan.task}, {labels}\n{trained}")


def _steps(plan: Plan) -> Text:
    schedule = plan.schedule
    devices = f"{schedule.devices} device{'s' * (schedule.devices > 1)}"
    batch, accumulation = schedule.per_device_train_batch_size, schedule.gradient_accumulation_steps
    held = f"{batch} x {_known(accumulation, 'later')} accumulated x {devices}"
    held_out = f"{_known(schedule.eval_examples, 'none')} held out"
    ratio = "" if schedule.warmup_steps is not None else "warm-up by its share of the steps"
    warmup = ratio or f"{schedule.warmup_steps} warm-up steps"
    if isinstance(schedule, UnknownSchedule):
        steps, each = schedule.optimizer_steps, _known(schedule.examples_per_optimizer_step, "packed")
        first = f"{steps:,} of {each} examples" if steps is not None else "known when the rows are tokenized"
        of = "" if schedule.train_examples is None else f" from {schedule.train_examples:,} examples"
        return Text(f"{first}\n{held}\nan unknown number of rows{of}, {held_out}; {warmup}")
    epochs, per_epoch = schedule.num_train_epochs, schedule.optimizer_steps_per_epoch
    passes = "1 epoch" if epochs == 1 else f"{epochs:.4g} epochs"
    estimate = plan.estimate
    first = f"{schedule.optimizer_steps:,} = {passes} x {per_epoch:,} steps of "
    first += f"{schedule.examples_per_optimizer_step:g} examples"
    about = ""
    if estimate is not None:
        about = "about "
        # Without packing, steps follow from the examples, which are counted.
        first = about + first if plan.choices.packing.value else first
    if schedule.tokens_per_optimizer_step is not None:
        held += f", {about}{schedule.tokens_per_optimizer_step:,} tokens a step"
    of = "" if schedule.train_rows == schedule.train_examples else f" from {schedule.train_examples:,} examples"
    ends = [warmup]
    ends += [f"{schedule.evaluations} evaluations"] if schedule.evaluations else []
    ends += [f"{schedule.checkpoints} checkpoints"] if schedule.checkpoints else []
    rows = f"{about if of else ''}{schedule.train_rows:,} rows"
    return Text(f"{first}\n{held}\n{rows}{of}, {held_out}; {', '.join(ends)}")


def _padding(plan: Plan) -> Group:
    batching, batch = plan.batching, plan.schedule.per_device_train_batch_size
    if isinstance(batching, UnknownBatching):
        return Group(Text(f"{batching.active}: {batching.active_because}"), Text(batching.missing, "dim"))
    shares = [f"{row.batch}: {row.padding_share:.0%}" for row in batching.table if row.mode == "random"]
    lengths = batching.lengths
    about = "" if plan.estimate is None else "about "
    note = f"rows of {about}{lengths.median} tokens (median), 90 % up to {lengths.p90}, longest {lengths.longest}; "
    if batching.recommended == batching.active:
        note += batching.active_because
    else:
        note += f"{batching.recommended} would be {batching.speed_up:.2f} times as fast"
    parts: list[Any] = [
        _Modes(batching, batch),
        Text(f"random by batch: {', '.join(shares)}", "dim"),
        Text(note, "dim"),
    ]
    if plan.estimate is not None:
        why = f"tokens are ESTIMATED, ±{plan.estimate.error:.0%}: {plan.estimate.why}"
        parts.append(Text.assemble((why, "yellow"), (f"; {plan.estimate.how}", "dim")))
    return Group(*parts)


@dataclass(frozen=True)
class _Modes:
    """One line for each mode of batching at the size of a batch; without bars and tokens where the page is narrow."""

    batching: Batching
    batch: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = Table.grid(padding=(0, 1))
        wide = options.max_width >= WIDE
        for _ in range(5 if wide else 3):
            grid.add_column(no_wrap=True)
        for row in (row for row in self.batching.table if row.batch == self.batch):
            available = row.mode in self.batching.available
            active = "◂ active" if row.mode == self.batching.active else "" if available else "not here"
            useful = round(BAR * (1 - row.padding_share))
            style = "bold" if row.mode == self.batching.active else ""
            bar = Text.assemble(("█" * useful, "green"), ("░" * (BAR - useful), "red"))
            tokens = Text(f"{row.useful_tokens:,.0f} tokens", style, justify="right")
            grid.add_row(
                Text(row.mode, style),
                *([bar] if wide else []),
                Text(f"{row.padding_share:.1%} padding", style, justify="right"),
                *([tokens] if wide else []),
                Text(active, "bold" if active.startswith("◂") else "dim"),
            )
        yield grid


def _memory(plan: Plan) -> Group:
    forecast = plan.memory
    if isinstance(forecast, UnknownMemory):
        return Group(Text(forecast.missing))
    peak, fitting = forecast.peak, forecast.fitting
    share = peak.peak_bytes / peak.device_bytes
    full = min(BAR, round(BAR * share))
    verdict = ("fits", "bold green") if peak.fits else ("DOES NOT FIT", "bold red")
    head = Text.assemble(
        ("█" * full, "green" if share <= 0.9 else "red"),
        ("░" * (BAR - full), "dim"),
        f" {size(peak.peak_bytes)} of {size(peak.device_bytes)} ({share:.0%}) ",
        verdict,
    )
    needs = f"checkpointing is {'' if fitting.needs_checkpointing else 'not '}needed"
    needs += ", 4-bit is needed" if fitting.needs_4bit else ""
    room = f"room for batch {fitting.largest_batch:,} or rows of {fitting.longest_row:,} tokens; {needs}"
    if not fitting.largest_batch:
        room = f"not even one row fits; rows of up to {fitting.longest_row:,} tokens would"
    target = fitting.target
    if target is not None and target.batch != plan.schedule.per_device_train_batch_size:
        room += f"; the same step as {target.batch} x {target.accumulation}"
    what = f"at {peak.tokens:,} tokens ({forecast.micro_batch}): {_parts(peak)}"
    return Group(head, Text(what, "dim"), Text(room))


def _parts(peak: PeakMemory) -> str:
    """The parts above 2 % of the peak, largest first, and the sum of the others."""
    large = {name: value for name, value in peak.parts.items() if value > peak.peak_bytes / 50}
    rest = peak.peak_bytes - sum(large.values())
    shown = [
        f"{PARTS.get(name, name)} {size(value)}" for name, value in sorted(large.items(), key=lambda part: -part[1])
    ]
    return ", ".join([*shown, *([f"other {size(rest)}"] if rest else [])])


def _time(plan: Plan) -> Text:
    time = plan.time
    if isinstance(time, UnknownTime):
        step = ""
        if time.full_step is not None:
            took = between(time.full_step.low, time.full_step.high) if time.full_step.high >= 1 else "less than 1 s"
            step = f"\na step of full rows takes at most {took}"
        return Text(f"unknown: {time.missing}{step}")
    seconds, price = time.seconds, time.price
    costs = "" if price is None else f", costs {price.low:,.2f} to {price.high:,.2f}"
    costs += " with the download" if costs and time.download else ""
    work = f"{time.work.total / 1e9:.3g} GFLOP a token ({round(time.work.attention_share, 4):.0%} attention)"
    head = f"{between(seconds.low, seconds.high)} of training at about {time.tokens_per_second:,.0f} tokens/s{costs}"
    download = ""
    if time.download:
        fast, slow = map(duration, time.download)
        download = f"\nbefore it {size(plan.disk.download_bytes or 0)} to download: "
        download += f"{fast} at 1 Gbit/s, {slow} at 100 Mbit/s"
    return Text.assemble(head, download, "\n", (f"{work}; {time.rate.assumption}", "dim"))


def _disk(plan: Plan) -> Text:
    disk = plan.disk
    parts = {
        "checkpoints": disk.checkpoints_bytes,
        "adapter": disk.adapter_bytes,
        "merged": disk.merged_bytes,
        "GGUF": disk.gguf_bytes,
        "conversion" if plan.base_model.startswith("package:") else "download": disk.download_bytes,
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
        for key, choice in plan.choices.by_key().items()
    ]


def _calls(plan: Plan) -> Group:
    parts: list[Any] = [Text("upstream calls", style="italic")]
    for call in plan.calls.in_order:
        parts.append(Text(f"{call.name}(", style="cyan"))
        # Never wrapped, so that a call can be copied.
        parts += [Text(f"    {key}={value!r},", no_wrap=True, overflow="ignore") for key, value in call.kwargs.items()]
        parts.append(Text(")", style="cyan"))
    return Group(*parts)


def _known(value: float | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _shown(value: object) -> str:
    return "later" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
