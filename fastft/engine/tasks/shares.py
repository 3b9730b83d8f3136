"""Sharing rows that have one loss each, labels and preferences, among ranks: what fills up a rank without rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from fastft.engine.ranks import total
from fastft.engine.trainer import RunTrainer

# (rows,) of a micro-batch of several ranks: whether each is a row of the data.
REAL = "real"


class FilledRows(Dataset[dict[str, Any]]):
    """`rows` with one more at the end, which stands for no row: the first one again, without a loss."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) + 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        is_real = index < len(self._rows)
        row: dict[str, Any] = self._rows[index if is_real else 0]
        return {**row, REAL: is_real}


def marked(collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]) -> Callable[[Any], Any]:
    """`collate`, without what stands for no row where there is a row, and with `REAL`."""

    def collate_rows(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        real = [row for row in rows if row.get(REAL, True)]
        return collate(real or rows[:1]) | {REAL: torch.full((len(real or rows[:1]),), bool(real))}

    return collate_rows


def real_rows(inputs: dict[str, Any], rows: int) -> int:
    """How many of the `rows` of a micro-batch are rows of the data: all or none."""
    return rows if bool(inputs.get(REAL, torch.tensor([True])).all()) else 0


def step_loss(each: torch.Tensor, inputs: dict[str, Any], items: Any, ranks: int) -> torch.Tensor:
    """The loss of a micro-batch whose rows have the losses `each`, (rows,): a part of the mean over `items`.

    `items`: of the whole optimizer step on all `ranks`, whose gradients are averaged afterwards.
    """
    if REAL in inputs:
        each = torch.where(inputs[REAL], each, 0.0)
    return each.sum() * ranks / items


class SharedRowsTrainer(RunTrainer):
    """A RunTrainer whose rows have one loss each; held-out rows come in a fixed order and are gathered whole."""

    def _fill_up(self) -> None:
        self.train_dataset = FilledRows(self.train_dataset)
        self.data_collator = marked(self.data_collator)

    def _is_filler(self, inputs: dict[str, Any]) -> bool:
        return not real_rows(inputs, 1)


def items_of_all(count: int) -> int:
    """The sum over all ranks, which all must ask."""
    return total((count,))[0]
