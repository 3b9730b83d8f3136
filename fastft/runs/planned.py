"""What the report of a run reads of its plan.json; the whole plan is for people and other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class PlannedSchedule:
    """The numbers of a run that are known when it starts."""

    train_examples: int | None
    eval_examples: int | None
    train_rows: int | None
    optimizer_steps: int | None
    optimizer_steps_per_epoch: int | None
    num_train_epochs: float | None
    per_device_train_batch_size: int
    gradient_accumulation_steps: int | None


@dataclass(frozen=True)
class PlannedLengths:
    """How long the training examples are, in tokens."""

    tokens: int
    mean: float
    median: int
    p90: int
    longest: int


@dataclass(frozen=True)
class PlannedMode:
    """What one way of making micro-batches of `batch` rows pads; `padding_share` of all computed tokens."""

    mode: str
    batch: int
    padding_share: float


@dataclass(frozen=True)
class PlannedBatching:
    """How examples become micro-batches."""

    active: str
    active_because: str
    lengths: PlannedLengths | None
    table: tuple[PlannedMode, ...]


@dataclass(frozen=True)
class PlannedChoice:
    """A value that fastft decided, why, and what the second best set-up has."""

    value: Any
    reason: str
    runner_up: Any = None


@dataclass(frozen=True)
class PlannedCaution:
    """A setting that is probably not meant."""

    says: str
    reason: str


@dataclass(frozen=True)
class Planned:
    """plan.json."""

    FILE: ClassVar[str] = "plan.json"
    SCHEMA: ClassVar[int] = 1

    recipe: str
    engine: str
    device: str
    base_model: str
    schedule: PlannedSchedule
    batching: PlannedBatching
    choices: dict[str, PlannedChoice]
    warnings: tuple[PlannedCaution, ...]

    @property
    def padding(self) -> float | None:
        """The share of padding among the computed tokens, as planned; None where it is unknown."""
        batch, active = self.schedule.per_device_train_batch_size, self.batching.active
        found = (row for row in self.batching.table if (row.mode, row.batch) == (active, batch))
        return next((row.padding_share for row in found), None)
