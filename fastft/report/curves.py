"""The charts of a run, each with a sentence on what it shows and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastft.planning.learning_rates import RangeTest, mean_losses
from fastft.report.charts import Line, Mark, Point, line_chart, smoothed
from fastft.report.html import Markup, element
from fastft.runs.metrics import History, StepMetrics
from fastft.runs.planned import Planned

STEP = "optimizer step"
# With more, the marks would hide the curves.
MOST_EPOCHS = 20


@dataclass(frozen=True)
class RunEvents:
    """Optimizer steps at which later attempts continued the run, and those whose checkpoints are on disk."""

    resumes: tuple[int, ...] = ()
    checkpoints: tuple[int, ...] = ()


NO_EVENTS = RunEvents()


def charts(
    history: History, planned: Planned | None, events: RunEvents = NO_EVENTS, test: RangeTest | None = None
) -> Markup:
    """All charts of a run, or a sentence where no step is logged yet; `test`: of its learning rate, made before it."""
    if not history.steps:
        return element("p", "No optimizer step is logged yet.")
    marks = _marks(history, planned, events)
    made = [_loss(history, marks)]

    def of(title: str, unit: str, meaning: str, value: Callable[[StepMetrics], float | None]) -> None:
        points = [(float(step.step), y) for step in history.steps if (y := value(step)) is not None]
        if points:
            made.append(_figure(title, line_chart(title, STEP, unit, [Line(title, points, "one")], marks), meaning))

    of(
        "learning rate",
        "learning rate (no unit)",
        "How far a step moves the weights: it rises in the warm-up and then goes as lr_scheduler_type says.",
        lambda step: step.learning_rate,
    )
    of(
        "gradient norm",
        "norm before clipping (no unit)",
        "How strongly the rows of a step pull at the weights. Even is good; peaks of many times the usual height,"
        " together with the loss, mean a learning rate that is too high, or broken rows.",
        lambda step: step.grad_norm,
    )
    of(
        "speed",
        "tokens/s",
        "Real tokens trained in a second, padding not counted. It falls where rows are short or much is padded, and"
        " where other work takes the machine.",
        lambda step: step.tokens_per_second,
    )
    of(
        "padding",
        "padding (%)",
        "The share of computed tokens that are padding and teach nothing. group_by_length, packing or fewer rows in a"
        " micro-batch lower it.",
        lambda step: None if step.padding is None else 100 * step.padding,
    )
    of(
        "gradient noise scale",
        "examples",
        "About how many examples a step can hold before more of them gain little (McCandlish et al. 2018). It grows as"
        " the loss falls. Far above effective_batch_size, a larger one loses little for each example; far below it, a"
        " smaller one learns more from the same rows. Rows are sorted by length within a step, which makes it a little"
        " too large where long and short rows differ much.",
        lambda step: None if step.noise_scale is None else step.noise_scale[0],
    )
    of(
        "peak memory",
        "GiB",
        "The most memory taken so far. What stays free below the device's own could hold a larger batch.",
        lambda step: step.memory_bytes / 1024**3,
    )
    if test is not None:
        made.append(range_chart(test))
    return element("div", *made, class_="charts")


def range_chart(test: RangeTest) -> Markup:
    """The curve of a range test of the learning rate, with the rate that it suggests."""
    finite = [point for point in test.points if math.isfinite(point.loss)]
    raw: list[Point] = [(math.log10(point.learning_rate), point.loss) for point in finite]
    means = mean_losses([point.loss for point in finite])
    # What breaks at the end would press the rest flat.
    most = 1.5 * max(means[0], max(loss for _, loss in raw[: 1 + means.index(min(means))]))
    lines = [
        Line("step", [(x, y) for x, y in raw if y <= most], "raw"),
        Line("running mean", [(x, y) for (x, _), y in zip(raw, means, strict=True) if y <= most], "one"),
    ]
    marks = [] if test.suggested is None else [Mark(math.log10(test.suggested), "suggested", "epoch")]
    chart = line_chart("learning rate test", "learning rate", "loss (nats a token)", lines, marks, powers=True)
    suggested = "No rate is suggested" if test.suggested is None else f"{test.suggested:.1e} is suggested"
    meaning = (
        f"The loss while the rate rises from step to step, {test.examples_per_step} examples each, before any run:"
        f" it falls where training learns, and rises where it breaks. {suggested}: {test.reason}."
    )
    return _figure("learning rate test", chart, meaning)


def _loss(history: History, marks: list[Mark]) -> Markup:
    meaning = "How wrong the model is on the tokens that carry loss: it should fall, and then flatten."
    if any(each.loss is not None for each in history.evaluations):
        meaning += (
            " Where the held-out loss rises while the training loss falls, the model learns the rows by heart:"
            " train fewer epochs, or more varied rows."
        )
    return _figure("loss", loss_chart(history, marks), meaning)


def loss_chart(history: History, marks: Sequence[Mark] = ()) -> Markup:
    """The training loss, raw and smoothed, and the held-out loss over optimizer steps."""
    raw: list[Point] = [(step.step, step.loss) for step in history.steps]
    lines = [Line("step", raw, "raw"), Line("running mean", smoothed(raw), "one")]
    held_out = [(float(each.step), each.loss) for each in history.evaluations if each.loss is not None]
    if held_out:
        lines.append(Line("held-out", held_out, "two", dots=True))
    return line_chart("loss", STEP, "loss (nats a token)", lines, marks)


def _marks(history: History, planned: Planned | None, events: RunEvents) -> list[Mark]:
    last = history.steps[-1].step
    each = None if planned is None else planned.schedule.optimizer_steps_per_epoch
    ends = [] if not each or last // each > MOST_EPOCHS else range(each, last, each)
    marks = [Mark(end, "epoch", "epoch") for end in ends]
    marks += [Mark(each.step, "out of memory", "memory") for each in history.out_of_memory]
    marks += [Mark(step, "resumed", "resumed") for step in events.resumes]
    marks += [Mark(each.step, "warning", "warning") for each in history.warnings]
    # Short ones at the foot: they come often, and hide nothing there.
    evaluated = sorted({each.step for each in history.evaluations if each.loss is not None})
    marks += [Mark(step, "evaluation", "evaluation", height=14) for step in evaluated]
    return marks + [Mark(step, "checkpoint", "checkpoint", height=7) for step in events.checkpoints]


def _figure(title: str, chart: Markup, meaning: str) -> Markup:
    return element("figure", element("h3", title), chart, element("figcaption", meaning))
