"""The order in which examples meet in batches, and the padding that each order costs, measured before training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fastft.data.packing import pack

Order = Literal["plain", "step_sorted", "grouped", "packed"]
# transformers groups by length within this many batches (its LengthGroupedSampler).
MEGA_BATCHES = 50


@dataclass(frozen=True)
class Padding:
    """What one epoch computes under an order: `tokens` of the examples among `computed_tokens` of all batches."""

    order: Order
    batches: int
    tokens: int
    computed_tokens: int

    @property
    def waste(self) -> float:
        """The share of computed tokens that is padding, 0 to 1."""
        return 1 - self.tokens / self.computed_tokens if self.computed_tokens else 0.0


def plain(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Batches of indices in random order."""
    order = _shuffled(len(lengths), seed)
    return _cut(order, batch_size)


def step_sorted(lengths: Sequence[int], batch_size: int, accumulation_steps: int, seed: int) -> list[list[int]]:
    """Batches in random order, sorted by length inside each optimizer step.

    Each step learns from the very examples that `plain` gives it, so the training is the same up to rounding.
    """
    batches = []
    for step in _cut(_shuffled(len(lengths), seed), batch_size * accumulation_steps):
        batches += _cut(sorted(step, key=lambda index: -lengths[index]), batch_size)
    return batches


def grouped(lengths: Sequence[int], batch_size: int, accumulation_steps: int, seed: int) -> list[list[int]]:
    """Batches of like length: sorted within mega-batches of 50 optimizer steps, the longest example of all first.

    The same rule as `group_by_length` of transformers, which sorts within 50 times batch size times accumulation.
    """
    mega = [
        sorted(part, key=lambda index: -lengths[index])
        for part in _cut(_shuffled(len(lengths), seed), MEGA_BATCHES * batch_size * accumulation_steps)
    ]
    if mega:
        # The longest first, so that what does not fit into memory fails in the first step.
        longest = max(range(len(mega)), key=lambda number: lengths[mega[number][0]])
        mega[0][0], mega[longest][0] = mega[longest][0], mega[0][0]
    return _cut([index for part in mega for index in part], batch_size)


def measure(
    lengths: Sequence[int], batch_size: int, accumulation_steps: int, max_seq_length: int, seed: int
) -> dict[Order, Padding]:
    """The padding of each order for these examples, exactly as it would be trained."""
    tokens = sum(lengths)
    orders: dict[Order, Callable[[], list[list[int]]]] = {
        "plain": lambda: plain(lengths, batch_size, seed),
        "step_sorted": lambda: step_sorted(lengths, batch_size, accumulation_steps, seed),
        "grouped": lambda: grouped(lengths, batch_size, accumulation_steps, seed),
    }
    measured = {}
    for order, make in orders.items():
        batches = make()
        computed = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
        measured[order] = Padding(order, len(batches), tokens, computed)
    rows = [sum(lengths[index] for index in row) for row in pack(lengths, max_seq_length)]
    batches = _cut(_shuffled(len(rows), seed), batch_size)
    computed = sum(len(batch) * max(rows[index] for index in batch) for batch in batches)
    measured["packed"] = Padding("packed", len(batches), tokens, computed)
    return measured


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311 -- the same seed must give the same order
    return order


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
