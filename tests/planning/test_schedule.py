from __future__ import annotations

from typing import Any

import pytest

from fastft.planning.schedule import (
    Schedule,
    UnknownSchedule,
    make_schedule,
    micro_batches,
    points,
    steps_per_epoch,
    total_steps,
    unknown_schedule,
    warmup,
)
from fastft.recipe.model import TrainSection


def section(**train: Any) -> TrainSection:
    """A batch of 16 and 3 epochs, where `train` names no steps."""
    asked = {"per_device_train_batch_size": 16, "num_train_epochs": 3.0, **train}
    if "max_steps" in train:
        del asked["num_train_epochs"]
    return TrainSection(**asked)


def schedule(*, examples: int = 10_000, rows: int = 10_000, accumulation: int = 8, **train: Any) -> Schedule:
    """10,000 examples of 10 tokens, a batch of 16, 8 accumulated, 3 epochs on one device."""
    return make_schedule(
        examples=examples,
        rows=rows,
        tokens=10 * examples,
        eval_examples=None,
        batch=train.get("per_device_train_batch_size", 16),
        accumulation=accumulation,
        devices=1,
        train=section(**train),
    )


def schedule_without_rows(*, examples: int | None = None, **train: Any) -> UnknownSchedule:
    """A batch of 16, 8 accumulated, 3 epochs on one device, before the rows are known."""
    return unknown_schedule(
        examples=examples, eval_examples=None, batch=16, accumulation=8, devices=1, train=section(**train)
    )


def test_ten_thousand_rows_at_128_a_step_are_79_steps_an_epoch_and_237_in_three() -> None:
    made = schedule()

    assert made.examples_per_optimizer_step == 128
    assert made.micro_batches_per_epoch == 625
    assert made.optimizer_steps_per_epoch == 79
    assert made.optimizer_steps == 237


def test_a_thousand_steps_of_a_hundred_examples_are_ten_epochs_of_ten_thousand() -> None:
    made = schedule(per_device_train_batch_size=10, accumulation=10, max_steps=1000)

    assert (made.optimizer_steps, made.num_train_epochs) == (1000, 10)


@pytest.mark.parametrize(
    ("rows", "batch", "devices", "expected"),
    [(10, 2, 1, 5), (11, 2, 1, 6), (1, 8, 1, 1), (16, 2, 8, 1), (17, 2, 8, 2), (100, 4, 3, 9)],
)
def test_the_last_micro_batch_may_be_short_and_devices_share_them(
    rows: int, batch: int, devices: int, expected: int
) -> None:
    assert micro_batches(rows, batch, devices) == expected


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "expected"),
    [(480, 2, 36, 7), (72, 2, 36, 1), (73, 2, 36, 2), (1, 1, 100, 1), (0, 1, 1, 1)],
)
def test_micro_batches_left_over_make_one_more_step(rows: int, batch: int, accumulation: int, expected: int) -> None:
    assert steps_per_epoch(rows, batch, accumulation, 1) == expected


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, 7), (0.5, 4), (1.5, 11), (3.0, 21), (0.01, 1)])
def test_a_run_may_end_within_an_epoch(epochs: float, expected: int) -> None:
    assert total_steps(7, epochs) == expected


@pytest.mark.parametrize(
    ("ratio", "fixed", "expected"), [(0.03, None, 1), (0.1, None, 3), (None, 5, 5), (None, None, 0), (0.0, None, 0)]
)
def test_warm_up_is_a_share_rounded_up_or_a_number(ratio: float | None, fixed: int | None, expected: int) -> None:
    assert warmup(21, ratio, fixed) == expected


def test_packed_rows_make_a_step_of_more_examples() -> None:
    made = schedule(rows=1_000)

    assert made.examples_per_optimizer_step == 1280
    assert made.optimizer_steps_per_epoch == 8


def test_what_depends_on_rows_that_are_not_known_is_left_open() -> None:
    made = schedule_without_rows(warmup_ratio=0.1)

    assert (made.optimizer_steps, made.as_json()["optimizer_steps_per_epoch"], made.warmup_steps) == (None, None, None)
    assert (made.examples_per_optimizer_step, made.num_train_epochs) == (128, 3.0)


def test_examples_that_are_counted_and_not_yet_packed_make_a_step_of_an_unknown_size() -> None:
    assert schedule_without_rows(examples=10_000).examples_per_optimizer_step is None


def test_a_schedule_has_the_same_names_in_json_whether_the_rows_are_known_or_not() -> None:
    assert list(schedule_without_rows().as_json()) == list(schedule().as_json())


def test_steps_that_are_asked_for_are_known_without_the_rows() -> None:
    made = schedule_without_rows(max_steps=50, warmup_ratio=0.1)

    assert (made.optimizer_steps, made.warmup_steps, made.num_train_epochs) == (50, 5, None)


def test_what_is_left_at_the_end_of_an_epoch_is_told() -> None:
    made = schedule(examples=10_001, rows=10_001)

    assert made.micro_batches_per_epoch == 626
    assert made.last_micro_batch_rows == 1
    assert made.last_step_micro_batches == 2


def test_tokens_of_a_step_are_those_of_its_examples() -> None:
    assert schedule().tokens_per_optimizer_step == 1280
    assert schedule(examples=20, rows=20).tokens_per_optimizer_step == 200


@pytest.mark.parametrize(
    ("strategy", "every", "steps", "epochs", "expected"),
    [
        ("no", None, 237, 3.0, 0),
        ("steps", 50, 237, 3.0, 5),
        ("steps", 79, 237, 3.0, 3),
        ("steps", 500, 237, 3.0, 1),
        ("epoch", None, 237, 3.0, 3),
        ("epoch", None, 100, 1.27, 2),
    ],
)
def test_evaluations_and_checkpoints_come_at_their_points_and_at_the_end(
    strategy: str, every: int | None, steps: int, epochs: float, expected: int
) -> None:
    assert points(strategy, every, steps, epochs) == expected
