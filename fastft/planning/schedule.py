"""How many steps a run takes, counted as the Trainer of transformers counts them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastft.recipe.model import TrainSection


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run that follow from rows and batches.

    `train_examples` are the user's examples; `train_rows` what the model sees at once: the same, or packed rows.
    `eval_examples`: None where nothing is held out, or where it cannot be counted here.
    `tokens_per_optimizer_step`: None before the rows are tokenized.
    `last_micro_batch_rows`, `last_step_micro_batches`: what is left for the end of each epoch.
    `evaluations`, `checkpoints`: how often the trainer evaluates and saves between first and last step.
    """

    train_examples: int
    train_rows: int
    eval_examples: int | None
    devices: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    examples_per_optimizer_step: float
    micro_batches_per_epoch: int
    optimizer_steps_per_epoch: int
    optimizer_steps: int
    num_train_epochs: float
    warmup_steps: int
    tokens_per_optimizer_step: int | None
    last_micro_batch_rows: int
    last_step_micro_batches: int
    evaluations: int
    checkpoints: int

    def as_json(self) -> dict[str, Any]:
        """Every number under its own name."""
        return asdict(self)


@dataclass(frozen=True)
class UnknownSchedule:
    """What is known of a schedule while the number of rows is not: before packing, or with rows on the Hub.

    `train_examples`: known where they are counted and not yet packed. `optimizer_steps`: only those of `max_steps`;
    without it the epochs are known instead.
    """

    train_examples: int | None
    eval_examples: int | None
    devices: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int | None
    examples_per_optimizer_step: float | None
    optimizer_steps: int | None
    num_train_epochs: float | None
    warmup_steps: int | None

    def as_json(self) -> dict[str, Any]:
        """What is known under the names of `Schedule`, null for the rest."""
        return {**dict.fromkeys(field.name for field in fields(Schedule)), **asdict(self)}


def micro_batches(rows: int, batch: int, devices: int) -> int:
    """Micro-batches that each device goes through in one epoch.

    The loader cuts `rows` into batches (the last may be short), then deals whole batches to the devices and fills up
    the last round (engine/sampler.py, DealtSampler; accelerate/data_loader.py, BatchSamplerShard).
    """
    return math.ceil(math.ceil(rows / batch) / devices)


def rows_per_step(train: TrainSection, batch: int, accumulation: int, devices: int, *, packing: bool) -> int:
    """Rows of an optimizer step, over all devices.

    With effective_batch_size as many as one device would take, whatever the number of devices.
    """
    size = train.examples_per_step
    if size is None or devices == 1 or packing:
        return batch * accumulation * devices
    return batch * math.ceil(size / batch)


def steps_per_epoch(rows: int, batch: int, accumulation: int, devices: int) -> int:
    """Optimizer steps in one epoch; micro-batches left over at its end make one more, smaller step.

    transformers/trainer.py, set_initial_training_values: the division is rounded up since 4.46.
    """
    return max(1, math.ceil(micro_batches(rows, batch, devices) / accumulation))


def total_steps(per_epoch: int, epochs: float) -> int:
    """Optimizer steps of a run over `epochs`, which may end within an epoch (transformers/trainer.py)."""
    return math.ceil(epochs * per_epoch)


def warmup(steps: int, ratio: float | None, fixed: int | None) -> int:
    """Optimizer steps of warm-up (transformers/training_args.py, get_warmup_steps)."""
    return fixed if fixed is not None else math.ceil(steps * (ratio or 0.0))


def points(strategy: str, every: int | None, steps: int, epochs: float) -> int:
    """How often the trainer evaluates or saves (transformers/trainer_callback.py, DefaultFlowCallback).

    "steps": after every multiple of `every`, and after the last step. "epoch": after each epoch, also one that
    `max_steps` cuts short.
    """
    if strategy == "epoch":
        return math.ceil(round(epochs, 9))
    if strategy != "steps" or every is None:
        return 0
    return math.ceil(steps / every)


def make_schedule(
    *,
    examples: int,
    rows: int,
    tokens: int | None,
    eval_examples: int | None,
    batch: int,
    accumulation: int,
    devices: int,
    train: TrainSection,
    packing: bool = False,
) -> Schedule:
    """Every count of a run; `rows` differ from `examples` when several examples are packed into one row.

    `tokens`: of all examples, padding not counted; None before they are tokenized.
    """
    step_rows = rows_per_step(train, batch, accumulation, devices, packing=packing)
    whole, rest = divmod(rows, step_rows)
    batches = whole * accumulation + micro_batches(rest, batch, devices)
    per_epoch = max(1, math.ceil(batches / accumulation))
    steps = train.max_steps or total_steps(per_epoch, train.num_train_epochs or 1.0)
    epochs = steps / per_epoch
    # A counted file may have no rows: the run will refuse it.
    filled = max(1, rows)
    return Schedule(
        train_examples=examples,
        train_rows=rows,
        eval_examples=eval_examples,
        devices=devices,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        examples_per_optimizer_step=round(min(step_rows * (examples / filled), examples), 2),
        micro_batches_per_epoch=batches,
        optimizer_steps_per_epoch=per_epoch,
        optimizer_steps=steps,
        num_train_epochs=epochs,
        warmup_steps=warmup(steps, train.warmup_ratio, train.warmup_steps),
        tokens_per_optimizer_step=None if tokens is None else round(tokens / filled * min(step_rows, rows)),
        last_micro_batch_rows=batch if devices > 1 else rows - (rows - 1) // batch * batch,
        last_step_micro_batches=batches - (batches - 1) // accumulation * accumulation,
        evaluations=points(train.eval_strategy, train.eval_steps, steps, epochs),
        checkpoints=points(train.save_strategy, train.save_steps, steps, epochs),
    )


def unknown_schedule(
    *,
    examples: int | None,
    eval_examples: int | None,
    batch: int,
    accumulation: int | None,
    devices: int,
    train: TrainSection,
) -> UnknownSchedule:
    """What is known before the number of rows is."""
    steps = train.max_steps
    step_examples = None
    # Where the examples are counted and the rows are not, an unknown number of examples is packed into each row.
    if examples is None and accumulation is not None:
        step_examples = float(batch * accumulation * devices)
    return UnknownSchedule(
        train_examples=examples,
        eval_examples=eval_examples,
        devices=devices,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        examples_per_optimizer_step=step_examples,
        optimizer_steps=steps,
        num_train_epochs=None if steps is not None else train.num_train_epochs or 1.0,
        warmup_steps=train.warmup_steps if steps is None else warmup(steps, train.warmup_ratio, train.warmup_steps),
    )
