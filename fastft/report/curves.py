"""The charts of a run, each with a sentence on what it shows and what to do about it."""

from __future__ import annotations

from collections.abc import Callable

from fastft.report.charts import Line, Mark, Point, line_chart, smoothed
from fastft.report.html import Markup, element
from fastft.runs.metrics import History, StepMetrics
from fastft.runs.planned import Planned

STEP = "optimizer step"
# With more, the marks would hide the curves.
MOST_EPOCHS = 20


def charts(history: History, planned: Planned | None) -> Markup:
    """All charts of a run, or a sentence where no step is logged yet."""
    if not history.steps:
        return element("p", "No optimizer step is logged yet.")
    marks = _marks(history, planned)
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
        "share of the computed tokens, in %",
        "Tokens that only fill rows up to the longest one of their micro-batch. Packing, or smaller micro-batches, have"
        " less of it.",
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
    return element("div", *made, class_="charts")


def _loss(history: History, marks: list[Mark]) -> Markup:
    raw: list[Point] = [(step.step, step.loss) for step in history.steps]
    lines = [Line("step", raw, "raw"), Line("running mean", smoothed(raw), "one")]
    held_out = [(float(each.step), each.loss) for each in history.evaluations if each.loss is not None]
    meaning = "How wrong the model is on the tokens that carry loss: it should fall, and then flatten."
    if held_out:
        lines.append(Line("held-out", held_out, "two", dots=True))
        meaning += (
            " Where the held-out loss rises while the training loss falls, the model learns the rows by heart:"
            " train fewer epochs, or more varied rows."
        )
    return _figure("loss", line_chart("loss", STEP, "loss (nats a token)", lines, marks), meaning)


def _marks(history: History, planned: Planned | None) -> list[Mark]:
    last = history.steps[-1].step
    each = None if planned is None else planned.schedule.optimizer_steps_per_epoch
    ends = [] if not each or last // each > MOST_EPOCHS else range(each, last, each)
    marks = [Mark(end, "epoch", "epoch") for end in ends]
    return marks + [Mark(each.step, "out of memory", "memory") for each in history.out_of_memory]


def _figure(title: str, chart: Markup, meaning: str) -> Markup:
    return element("figure", element("h3", title), chart, element("figcaption", meaning))
