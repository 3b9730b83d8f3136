"""What padding costs: the real lengths in the real order, batched in each mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from fastft.data.order import grouped, shuffled, sorted_in_steps
from fastft.data.packing import pack

Mode = Literal["random", "group_by_length", "padding_free", "packing"]
BATCHES = (1, 2, 4, 8, 16, 32)
# TRL packs blocks of this many rows (datasets.map's batch_size, which pack_dataset leaves as it is).
PACKING_BLOCK = 1000
# Rows of the first epoch that are measured. The shares of more rows differ from theirs by less than 0.1 points.
MEASURED_ROWS = 50_000
SPEED_UP_WORTH_TELLING = 1.02


@dataclass(frozen=True)
class Padding:
    """One way of batching at one batch size, over the first epoch.

    `padding_share`: padding among all computed tokens, 0 to 1. `useful_tokens`: mean real tokens of a micro-batch.
    `most_tokens`: computed tokens of the largest micro-batch. `fill`: packed tokens among those that rows could hold.
    """

    mode: Mode
    batch: int
    micro_batches: int
    padding_share: float
    useful_tokens: float
    most_tokens: int
    fill: float | None = None


@dataclass(frozen=True)
class Lengths:
    """How long the examples are, in tokens."""

    examples: int
    tokens: int
    mean: float
    median: int
    p90: int
    longest: int
    # A token attends to this many others on average, causal halving not counted: sum of squares over sum.
    mean_span: float


@dataclass(frozen=True)
class Lost:
    """What `max_seq_length` costs: rows that are left out, tokens, and the tokens of the longest row before that."""

    rows: int
    tokens: int
    longest: int
    overlong: str


@dataclass(frozen=True)
class Batching:
    """How examples are put together in micro-batches.

    `available`: the modes that can be active on this device. `speed_up`: how much faster an epoch would be with
    `recommended` than with `active`. `padding`: the row of `table` for the mode and batch of this run.
    """

    active: Mode
    active_because: str
    available: tuple[Mode, ...]
    recommended: Mode
    recommended_because: str
    speed_up: float
    lengths: Lengths
    lost: Lost
    measured_rows: int
    table: tuple[Padding, ...]
    padding: Padding

    def as_json(self) -> dict[str, Any]:
        """Every figure; `padding` only if the table has it."""
        return {name: value for name, value in asdict(self).items() if name != "padding"}


@dataclass(frozen=True)
class UnknownBatching:
    """How examples are put together in micro-batches, and why their padding cannot be measured yet."""

    active: Mode
    active_because: str
    available: tuple[Mode, ...]
    missing: str

    def as_json(self) -> dict[str, Any]:
        """What is known under the names of `Batching`, null for the rest, and a table without rows."""
        known = {**vars(self), "recommended_because": self.missing, "measured_rows": 0, "table": ()}
        return {field.name: known.get(field.name) for field in fields(Batching) if field.name != "padding"}


def describe(lengths: Sequence[int]) -> Lengths:
    """Count, sum, mean, percentiles and span of token lengths; at least one."""
    ordered = sorted(lengths)
    tokens = sum(ordered)
    return Lengths(
        examples=len(ordered),
        tokens=tokens,
        mean=round(tokens / len(ordered), 1),
        median=ordered[len(ordered) // 2],
        p90=ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)],
        longest=ordered[-1],
        mean_span=round(sum(length * length for length in ordered) / tokens, 1),
    )


def packed_rows(lengths: Sequence[int], capacity: int) -> list[int]:
    """The tokens of each packed row, as TRL packs them: best-fit decreasing in blocks of 1,000 examples."""
    rows: list[int] = []
    for block in _parts(lengths, PACKING_BLOCK):
        rows += [sum(block[index] for index in row) for row in pack(block, capacity)]
    return rows


def measure(
    lengths: Sequence[int],
    packed: Sequence[int],
    *,
    capacity: int,
    seed: int,
    batches: Sequence[int],
    rows_per_step: int,
) -> tuple[Padding, ...]:
    """Every mode at every batch size, in the order that the trainer's first epoch has with this seed.

    `packed`: tokens of each packed row. `rows_per_step`: examples of an optimizer step, which the accumulation keeps
    when the batch changes; random order sorts within them, group_by_length within 50 times as many.
    """
    order = shuffled(len(lengths), seed, MEASURED_ROWS)
    drawn = [lengths[index] for index in order]
    packed_drawn = [packed[index] for index in shuffled(len(packed), seed, MEASURED_ROWS)]
    table = []
    for batch in batches:
        step = batch * max(1, round(rows_per_step / batch))
        by_length = [lengths[index] for index in grouped(lengths, order, step)]
        table += [
            _padded("random", [lengths[index] for index in sorted_in_steps(lengths, order, step)], batch),
            _padded("group_by_length", by_length, batch),
            _flat("padding_free", drawn, batch, None),
            _flat("packing", packed_drawn, batch, capacity),
        ]
    return tuple(table)


def _padded(mode: Mode, lengths: Sequence[int], batch: int) -> Padding:
    """Each micro-batch padded to its longest row, as the collator does it (trl DataCollatorForLanguageModeling)."""
    sizes = [len(part) * max(part) for part in _parts(lengths, batch)]
    tokens, computed = sum(lengths), sum(sizes)
    return Padding(mode, batch, len(sizes), round(1 - tokens / computed, 5), round(tokens / len(sizes), 1), max(sizes))


def _flat(mode: Mode, lengths: Sequence[int], batch: int, capacity: int | None) -> Padding:
    """Each micro-batch flattened to one row without padding (the collator's `padding_free`)."""
    sizes = [sum(part) for part in _parts(lengths, batch)]
    tokens = sum(sizes)
    fill = None if capacity is None else round(tokens / (len(lengths) * capacity), 4)
    return Padding(mode, batch, len(sizes), 0.0, round(tokens / len(sizes), 1), max(sizes), fill)


def _parts(lengths: Sequence[int], size: int) -> list[Sequence[int]]:
    return [lengths[start : start + size] for start in range(0, len(lengths), size)]


def recommend(
    table: Sequence[Padding],
    active: Padding,
    available: Sequence[Mode],
    seconds: Mapping[tuple[Mode, int], float],
) -> tuple[Mode, float]:
    """The fastest available mode at the batch of `active`, and how much faster than `active` it is.

    `seconds`: what the same tokens take in each mode and batch.
    """
    candidates = [row for row in table if row.batch == active.batch and row.mode in available]
    # At a tie the active mode wins, so that no change without gain is recommended.
    best = min(candidates, key=lambda row: (seconds[row.mode, row.batch], row.mode != active.mode))
    speed_up = seconds[active.mode, active.batch] / seconds[best.mode, best.batch]
    return (best.mode, speed_up) if speed_up >= SPEED_UP_WORTH_TELLING else (active.mode, 1.0)


def batches_to_measure(batch: int) -> tuple[int, ...]:
    """The batch sizes of the table: powers of two up to 32, and the recipe's own."""
    return tuple(sorted({*BATCHES, batch}))
