"""How many steps a run takes, counted as the Trainer of transformers counts them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastft.recipe.model import TrainSection


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run that follow from rows and batches. None where the number of rows is not known yet.

    `train_examples` are the user's examples; `train_rows` what the model sees at once: the same, or packed rows.
    `last_micro_batch_rows`, `last_step_micro_batches`: what is left for the end of each epoch.
    `evaluations`, `checkpoints`: how often the trainer evaluates and saves between first and last step.
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
    tokens_per_optimizer_step: int | None = None
    last_micro_batch_rows: int | None = None
    last_step_micro_batches: int | None = None
    evaluations: int | None = None
    checkpoints: int | None = None


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
    examples: int | None,
    rows: int | None,
    tokens: int | None,
    eval_examples: int | None,
    accumulation: int | None,
    devices: int,
    train: TrainSection,
) -> Schedule:
    """Every count of a run; `rows` differ from `examples` when several examples are packed into one row.

    `tokens`: of all examples, padding not counted; None before they are tokenized.
    """
    batch, epochs, max_steps = train.per_device_train_batch_size, train.num_train_epochs or 1.0, train.max_steps
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
        if step_examples is not None and examples is not None:
            step_examples = min(step_examples, examples)
    evaluations = checkpoints = None
    if steps is not None and per_epoch is not None:
        evaluations = points(train.eval_strategy, train.eval_steps, steps, epochs)
        checkpoints = points(train.save_strategy, train.save_steps, steps, epochs)
    step_tokens = None
    if rows and tokens is not None and accumulation is not None:
        step_tokens = round(tokens / rows * min(batch * accumulation * devices, rows))
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
        warmup_steps=train.warmup_steps if steps is None else warmup(steps, train.warmup_ratio, train.warmup_steps),
        tokens_per_optimizer_step=step_tokens,
        last_micro_batch_rows=None if not rows else batch if devices > 1 else rows - (rows - 1) // batch * batch,
        last_step_micro_batches=None
        if batches is None or accumulation is None
        else batches - (batches - 1) // accumulation * accumulation,
        evaluations=evaluations,
        checkpoints=checkpoints,
    )
