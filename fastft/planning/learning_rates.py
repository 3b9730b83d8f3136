"""The range test of a learning rate: the loss while the rate rises from step to step, and the rate to train with.

Smith 2017, Cyclical Learning Rates for Training Neural Networks, section 3.3: the loss falls from the rate on at which
training learns, and rises from the one on at which it breaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fastft.errors import MachineError
from fastft.files.cache import cache_folder
from fastft.files.records import read_record, write_record

# LoRA learns at ten times the rates of full fine-tuning; four powers of ten leave two of them on each side.
LORA_RANGE, FULL_RANGE = (1e-5, 1e-1), (1e-6, 1e-2)
STEPS = 32
# The running mean of the losses forgets half of a step within this many.
MEAN_STEPS = 3.0
# Two losses in a row of this many times the first one end the test: higher rates only break more.
BROKEN = 2.0
# The loss is lowest where training is about to break. A run of many steps wants less than one that rises through it.
BELOW_LOWEST = 4.0
# A fall of the mean loss, as a share of its first value, that is more than its noise.
LEAST_FALL = 0.05


@dataclass(frozen=True)
class RangePoint:
    """One optimizer step: its rate, and the mean loss of its trained tokens before it, in nats."""

    learning_rate: float
    loss: float


@dataclass(frozen=True)
class RangeTest:
    """What was measured, and the rate that it suggests; None where the loss did not fall. `reason`: why this one."""

    FILE: ClassVar[str] = "learning_rates.json"
    SCHEMA: ClassVar[int] = 1

    points: tuple[RangePoint, ...]
    examples_per_step: int
    suggested: float | None
    reason: str


@dataclass(frozen=True)
class KeptRangeTests:
    """learning_rates.json in the cache folder: the newest test by what it must have in common with a run."""

    SCHEMA: ClassVar[int] = 1

    tests: dict[str, RangeTest] = field(default_factory=dict)


def range_tests_file() -> Path:
    """Where the tests are kept."""
    return cache_folder() / RangeTest.FILE


def kept_range_tests(path: Path) -> Mapping[str, RangeTest]:
    """The tests in the file at `path`; none where it is missing or damaged, since they can be made again."""
    try:
        found = read_record(path, KeptRangeTests)
    except MachineError:
        return {}
    return {} if found is None else found.tests


def keep_range_test(path: Path, key: str, test: RangeTest) -> None:
    """Put a test into the file at `path`, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, KeptRangeTests({**kept_range_tests(path), key: test}))


def rising_rates(*, full_finetuning: bool, steps: int = STEPS) -> tuple[float, ...]:
    """The rate of each step: a power of ten takes as many steps as any other."""
    low, high = FULL_RANGE if full_finetuning else LORA_RANGE
    return tuple(float(f"{low * (high / low) ** (step / (steps - 1)):.4g}") for step in range(steps))


def mean_losses(losses: Sequence[float]) -> list[float]:
    """The running mean of the losses, corrected for its begin as Adam's means are."""
    keep = 0.5 ** (1 / MEAN_STEPS)
    total = weight = 0.0
    means = []
    for loss in losses:
        total, weight = keep * total + (1 - keep) * loss, keep * weight + 1 - keep
        means.append(total / weight)
    return means


def is_broken(losses: Sequence[float]) -> bool:
    """Whether the loss has risen so far that higher rates need not be tried."""
    return bool(losses) and not min(losses[-2:]) <= BROKEN * losses[0]


def judge_range(points: Sequence[RangePoint], examples_per_step: int) -> RangeTest:
    """The test of these points, with the rate that it suggests."""
    finite = [point for point in points if math.isfinite(point.loss)]
    means = mean_losses([point.loss for point in finite])
    if len(means) < 2 or means[0] - min(means) < LEAST_FALL * means[0]:
        highest = f"{points[-1].learning_rate:.1e}" if points else "?"
        return RangeTest(tuple(points), examples_per_step, None, f"the loss did not fall up to a rate of {highest}")
    lowest = means.index(min(means))
    # Each loss is that before the step of its rate, and the mean lags behind: the rate is that of the step before.
    rate = finite[max(0, lowest - 1)].learning_rate / BELOW_LOWEST
    suggested = float(f"{rate:.1e}")
    reason = (
        f"the mean loss fell from {means[0]:.2f} to {means[lowest]:.2f} up to a rate of "
        f"{finite[lowest].learning_rate:.1e}; a {BELOW_LOWEST:g}th of the rate before it leaves room for a whole run"
    )
    return RangeTest(tuple(points), examples_per_step, suggested, reason)
