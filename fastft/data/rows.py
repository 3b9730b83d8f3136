"""Encoded rows in flat storage, and the account of what became of every row that was read."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from fastft.data.example import Example
from fastft.data.render import NO_LOSS, Encoded
from fastft.errors import Problem, Where


class Rows(Sequence[Encoded]):
    """Encoded examples, stored flat: 8 bytes a token instead of some 70 as Python lists."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._labels = array("i")
        self._ends = array("q", [0])
        self._where: list[Where] = []

    def append(self, row: Encoded) -> None:
        self._ids.extend(row.input_ids)
        self._labels.extend(row.labels)
        self._ends.append(len(self._ids))
        self._where.append(row.where)

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start, end = self._ends[position], self._ends[position + 1]
        return Encoded(self._ids[start:end].tolist(), self._labels[start:end].tolist(), self._where[position])

    @property
    def lengths(self) -> list[int]:
        """The tokens of each row."""
        return [end - start for start, end in zip(self._ends, self._ends[1:], strict=False)]

    @property
    def tokens(self) -> int:
        """The tokens of all rows."""
        return len(self._ids)

    @property
    def trained_tokens(self) -> int:
        """How many of them carry loss."""
        return len(self._labels) - self._labels.count(NO_LOSS)


@dataclass(frozen=True)
class Overlong:
    """A row that is longer than max_seq_length: its own tokens, and how many of them are trained after all."""

    where: Where
    tokens: int
    kept_tokens: int = 0


@dataclass
class RowSet:
    """The training or the evaluation rows, and what became of every row that was read."""

    rows: Rows = field(default_factory=Rows)
    read: int = 0
    overlong: list[Overlong] = field(default_factory=list)
    # Broken: never trained. They count against data.max_reject_fraction.
    rejected: list[Problem] = field(default_factory=list)
    # Left out of the training rows by data.deduplicate, and the row that each repeats.
    repeated: list[tuple[Where, Where]] = field(default_factory=list)
    # Left out of the evaluation rows because they stand in the training rows.
    leaked: list[Problem] = field(default_factory=list)
    # Rows by source name, in the recipe's order.
    by_source: dict[str, int] = field(default_factory=dict)
    # Kept for evaluation rows only, in the order of `rows`: what the model is asked, and the right answer.
    examples: list[Example] = field(default_factory=list)
