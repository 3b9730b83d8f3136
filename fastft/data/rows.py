"""Encoded rows in flat storage, and the account of what became of every row that was read."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, overload

from fastft.data.encode import Encoded
from fastft.data.example import Example
from fastft.errors import Problem, Where


class Rows(Sequence[Encoded]):
    """Encoded examples, stored flat: 8 bytes a token instead of some 70 as Python lists.

    The storage is either arrays that grow, or views of a file that is mapped into memory (fastft.data.cache).
    """

    def __init__(self) -> None:
        self.ids: array[int] | memoryview[int] = array("i")
        self.labels: array[int] | memoryview[int] = array("i")
        # Row n is ids[ends[n]:ends[n + 1]].
        self.ends: array[int] | memoryview[int] = array("i", [0])
        self.paths: list[str] = []
        self.path_numbers: array[int] | memoryview[int] = array("i")
        self.lines: array[int] | memoryview[int] = array("i")
        self.trained_tokens = 0
        """How many tokens of all rows carry loss."""
        self._path_number: dict[str, int] = {}

    def append(self, row: Encoded) -> None:
        """Add one row at the end."""
        stores = (self.ids, self.labels, self.ends, self.path_numbers, self.lines)
        ids, labels, ends, path_numbers, lines = stores
        assert all(isinstance(store, array) for store in stores), "rows of a mapped file do not grow"  # noqa: S101
        ids.extend(row.input_ids)  # type: ignore[union-attr]
        labels.extend(row.labels)  # type: ignore[union-attr]
        ends.append(len(ids))  # type: ignore[union-attr]
        number = self._path_number.setdefault(row.where.path, len(self.paths))
        if number == len(self.paths):
            self.paths.append(row.where.path)
        path_numbers.append(number)  # type: ignore[union-attr]
        lines.append(row.where.line or 0)  # type: ignore[union-attr]
        self.trained_tokens += row.trained_tokens

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start, end = self.ends[position], self.ends[position + 1]
        return Encoded(self.ids[start:end].tolist(), self.labels[start:end].tolist(), self.where(position))

    def where(self, index: int) -> Where:
        """Where the row stands in its file."""
        return Where(self.paths[self.path_numbers[index]], self.lines[index] or None)

    @property
    def lengths(self) -> list[int]:
        """The tokens of each row."""
        ends = self.ends.tolist()
        return [end - start for start, end in pairwise(ends)]

    @property
    def tokens(self) -> int:
        """The tokens of all rows."""
        return len(self.ids)


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


def reject_record(problem: Problem) -> dict[str, Any]:
    """The line of rejects.jsonl for a row that is not trained."""
    where = {"file": problem.where.path, "line": problem.where.line}
    return {**where, "field": problem.field, "reason": problem.wrong, "got": problem.got, "instead": problem.instead}
