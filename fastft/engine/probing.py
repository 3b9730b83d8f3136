"""Real steps with one set-up: the tokens of a second, and the peak of memory with the longest rows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastft.data.rows import Rows, RowWriter
from fastft.engine.memory import begin_peak, free_memory, peak_held
from fastft.engine.model import Model, Tokenizer
from fastft.engine.tasks.preference import Preference
from fastft.engine.train import Material, make_trainer, ran_out_of_memory
from fastft.engine.trainer import Hooks, RunTrainer
from fastft.errors import OutOfMemoryError, Problem, TrainingError, Where
from fastft.planning.learning_rates import RangePoint, is_broken
from fastft.planning.plan import Plan
from fastft.runs.directory import RunDir
from fastft.runs.metrics import StepMetrics

# Steps that are timed, and those of a GPU before them, in which kernels are compiled and chosen.
TIMED_STEPS, GPU_WARM_STEPS = 2, 2


@dataclass(frozen=True)
class Figures:
    """Real tokens a second, and the peak bytes that this process held meanwhile, on the GPU or in main memory."""

    tokens_per_second: float
    peak_bytes: int


def steps_of_a_probe() -> int:
    """How many steps a probe takes after the one of the longest rows."""
    return TIMED_STEPS + (GPU_WARM_STEPS if torch.cuda.is_available() else 0)


def measure_set_up(
    plan: Plan, model: Model, tokenizer: Tokenizer, material: Material, rows_per_step: int, run: RunDir
) -> Figures:
    """What training of `plan` reaches: first one micro-batch of the longest rows of `material`, then a few steps.

    The steps are of `rows_per_step` rows each, which are spread evenly over all lengths.

    Raises:
        OutOfMemoryError: memory ran out.
        TrainingError: the trainer refused.
    """
    batch, lengths = plan.schedule.per_device_train_batch_size, material.train.lengths
    row_tokens = int(plan.calls.trainer.kwargs.get("max_length") or 0) if plan.choices.packing.value else None
    if isinstance(material.task, Preference):  # what is kept of the base is kept of all rows
        material = dataclasses.replace(material, task=dataclasses.replace(material.task, kept_in=None))
    longest = _longest(lengths, batch, row_tokens)
    steps = steps_of_a_probe()
    spread = _spread(lengths, steps * rows_per_step)
    said = ""
    try:
        begin_peak()
        _train(plan, model, tokenizer, _only(material, longest), 1, 1, run)
        accumulation = plan.schedule.gradient_accumulation_steps or 1
        if row_tokens is None:
            accumulation = max(1, round(min(len(spread), rows_per_step) / batch))
        lines = _train(plan, model, tokenizer, _only(material, spread), accumulation, steps, run)
        return Figures(_rate(lines), peak_held())
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:200]
    # Out here, without its cause: that would keep the tensors of what failed.
    free_memory()
    raise OutOfMemoryError(Problem(Where(plan.recipe), "train.per_device_train_batch_size", said, "take less"))


def _longest(lengths: Sequence[int], batch: int, row_tokens: int | None) -> list[int]:
    """The longest rows: as many as a micro-batch holds, or as fill its packed rows."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    if row_tokens is None:
        return order[:batch]
    taken, tokens = list[int](), 0
    for row in order:
        if tokens >= batch * row_tokens:
            break
        taken.append(row)
        tokens += lengths[row]
    return taken


def _spread(lengths: Sequence[int], count: int) -> list[int]:
    """`count` rows, one of each of as many equal parts of all rows by their length; all rows where there are fewer."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    count = min(count, len(order))
    return [order[(2 * part + 1) * len(order) // (2 * count)] for part in range(count)]


def _only(material: Material, rows: Sequence[int]) -> Material:
    """`material` of some of its rows, with nothing that is held out."""
    writer = RowWriter()
    for row in rows:
        writer.append(material.train[row])
    taken: Rows = writer.finish()
    return dataclasses.replace(
        material, train=taken, eval=None, early_stopping_patience=None, stop_on_divergence="never"
    )


def train_at_rates(
    plan: Plan,
    model: Model,
    tokenizer: Tokenizer,
    material: Material,
    rates: Sequence[float],
    rows_per_step: int,
    run: RunDir,
    show: Callable[[RangePoint], None],
) -> None:
    """Train a step at each of the `rates`, and `show` each loss; ends early where the loss is beyond use.

    The rows of the steps are spread evenly over all lengths.
    """
    if isinstance(material.task, Preference):
        material = dataclasses.replace(material, task=dataclasses.replace(material.task, kept_in=None))
    spread = _spread(material.train.lengths, len(rates) * rows_per_step)
    accumulation = plan.schedule.gradient_accumulation_steps or 1
    losses: list[float] = []

    def line(metrics: StepMetrics) -> None:
        losses.append(metrics.loss)
        show(RangePoint(rates[metrics.step - 1], metrics.loss))

    ramp = _Ramp(rates, lambda: is_broken(losses))
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": rates[0]}
    try:
        _trainer(
            plan, model, tokenizer, _only(material, spread), accumulation, len(rates), run, line, ramp, constant
        ).train_from(None)
    except TrainingError:
        # The guard against numbers that are none: the test has come to its end.
        if len(losses) < 2:
            raise


class _Ramp(TrainerCallback):
    """Gives each step its own rate, in place of a schedule, and ends training when it need not go on."""

    def __init__(self, rates: Sequence[float], is_over: Callable[[], bool]) -> None:
        self._rates, self._is_over = rates, is_over

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._rates[state.global_step]

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop = control.should_training_stop or self._is_over()


@dataclass(frozen=True)
class _Line:
    """A step: its real tokens, the seconds in it, and when it was over."""

    tokens: int
    seconds: float
    at: float


def _train(
    plan: Plan, model: Model, tokenizer: Tokenizer, material: Material, accumulation: int, steps: int, run: RunDir
) -> list[_Line]:
    """Train on all rows of `material`, and keep nothing but the time."""
    lines: list[_Line] = []

    def line(metrics: StepMetrics) -> None:
        lines.append(_Line(metrics.tokens, metrics.seconds, time.perf_counter()))

    _trainer(plan, model, tokenizer, material, accumulation, steps, run, line).train_from(None)
    return lines


def _trainer(
    plan: Plan,
    model: Model,
    tokenizer: Tokenizer,
    material: Material,
    accumulation: int,
    steps: int,
    run: RunDir,
    line: Callable[[StepMetrics], None],
    beside: TrainerCallback | None = None,
    others: Mapping[str, Any] | None = None,
) -> RunTrainer:
    """The trainer of the plan for a few steps, each of which is a line; it saves nothing."""
    changed = {
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        **(others or {}),
    }
    unneeded = ("metric_for_best_model", "greater_is_better", "eval_steps", "save_steps")
    kwargs = {name: value for name, value in plan.calls.trainer.kwargs.items() if name not in unneeded}
    call = dataclasses.replace(plan.calls.trainer, kwargs={**kwargs, **changed})
    shortened = dataclasses.replace(plan, calls=dataclasses.replace(plan.calls, trainer=call))
    material = dataclasses.replace(material, step_rows=len(material.train))
    hooks = Hooks(lambda _: None, lambda _: None, line, lambda _: None, lambda: False)
    trainer = make_trainer(shortened, model, tokenizer, material, run, hooks)
    if beside is not None:
        trainer.add_callback(beside)
    return trainer


def _rate(lines: Sequence[_Line]) -> float:
    """Tokens a second of the timed steps; on a GPU from one line to another, since kernels run on after their start."""
    if torch.cuda.is_available():
        timed = lines[GPU_WARM_STEPS:] or lines[-1:]
        before = lines[len(lines) - len(timed) - 1] if len(lines) > len(timed) else None
        seconds = timed[-1].at - before.at if before is not None else sum(line.seconds for line in timed)
    else:
        timed, seconds = lines, sum(line.seconds for line in lines)
    return sum(line.tokens for line in timed) / seconds
