"""How many steps a run takes, counted as the Trainer of transformers counts them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run that follow from rows and batches. None where the number of rows is not known yet.

    `train_examples` are the user's examples; `train_rows` what the model sees at once: the same, or packed rows.
    """

    train_examples: int | None
    train_rows: int | None
    eval_examples: int | None
    devices: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int | None
    examples_per_optimizer_step: float | None
    micro_batches_per_epoch: int | None
    optimizer_steps_per_epoch: int | None
    optimizer_steps: int | None
    num_train_epochs: float | None
    warmup_steps: int | None


def micro_batches(rows: int, batch: int, devices: int) -> int:
    """Micro-batches that each device goes through in one epoch.

    The loader cuts `rows` into batches (the last may be short), then deals whole batches to the devices and fills up
    the last round (accelerate/data_loader.py, BatchSamplerShard with even_batches).
    """
    return math.ceil(math.ceil(rows / batch) / devices)


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


def make_schedule(
    *,
    examples: int | None,
    rows: int | None,
    eval_examples: int | None,
    batch: int,
    accumulation: int | None,
    devices: int,
    epochs: float,
    max_steps: int | None,
    warmup_ratio: float | None,
    warmup_steps: int | None,
) -> Schedule:
    """Every count of a run; `rows` differ from `examples` when several examples are packed into one row."""
    per_epoch = steps = step_examples = batches = None
    if rows is not None:
        batches = micro_batches(rows, batch, devices)
    if rows is not None and accumulation is not None:
        per_epoch = steps_per_epoch(rows, batch, accumulation, devices)
        steps = max_steps or total_steps(per_epoch, epochs)
        epochs = steps / per_epoch
    elif max_steps is not None:
        steps = max_steps
    if accumulation is not None:
        per_row = examples / rows if examples and rows else 1.0 if rows == examples else None
        step_examples = None if per_row is None else batch * accumulation * devices * per_row
    return Schedule(
        train_examples=examples,
        train_rows=rows,
        eval_examples=eval_examples,
        devices=devices,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        examples_per_optimizer_step=None if step_examples is None else round(step_examples, 2),
        micro_batches_per_epoch=batches,
        optimizer_steps_per_epoch=per_epoch,
        optimizer_steps=steps,
        num_train_epochs=epochs if max_steps is None or per_epoch is not None else None,
        warmup_steps=warmup_steps if steps is None else warmup(steps, warmup_ratio, warmup_steps),
    )
