"""Encoded rows in blocks of flat storage, and the account of every row that was read."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, overload

from fastft.data.encode import Encoded
from fastft.data.example import Example
from fastft.errors import Problem, Where

# Stored when it is full: 2 MiB of ids and labels.
BLOCK_TOKENS = 2**18
# 32-bit integers, in own memory or in a mapped file.
Integers = array | memoryview  # type: ignore[type-arg]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows side by side: row n has ids[ends[n]:ends[n + 1]] and the same of `labels`; `paths` and `lines` are its
    place, with line 0 for none."""

    ids: Integers
    labels: Integers
    ends: Integers
    lines: Integers
    # Strings, or an Arrow column of them.
    paths: Any
    # For held-out rows: Example.as_json of each.
    examples: Sequence[Any] = ()
    # Encoded.rejected_from of each row, -1 for none; empty where no row rejects anything.
    rejected: Integers = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self.lines)


class Rows(Sequence[Encoded]):
    """Encoded examples, read-only: 8 bytes a token, in memory or in a mapped file (fastft.data.cache)."""

    def __init__(self, blocks: Iterable[Block] = (), trained_tokens: int = 0) -> None:
        self.blocks = tuple(blocks)
        self.trained_tokens = trained_tokens
        """How many tokens of all rows carry loss."""
        # Block n begins with row _first[n].
        self._first = [0, *accumulate(len(block) for block in self.blocks)]

    def __len__(self) -> int:
        return self._first[-1]

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        block, place = self.place(index)
        start, end = block.ends[place], block.ends[place + 1]
        ids, labels = (array("i", values[start:end].tobytes()) for values in (block.ids, block.labels))
        rejected = block.rejected[place] if len(block.rejected) else -1
        return Encoded(ids, labels, self.where(index), None if rejected < 0 else rejected)

    def where(self, index: int) -> Where:
        """The file and line of the row."""
        block, place = self.place(index)
        return Where(str(block.paths[place]), block.lines[place] or None)

    def place(self, index: int) -> tuple[Block, int]:
        """The block that holds row `index`, and the row's number in it."""
        position = range(len(self))[index]
        number = bisect_right(self._first, position) - 1
        return self.blocks[number], position - self._first[number]

    @property
    def lengths(self) -> list[int]:
        """The tokens of each row."""
        return [end - start for block in self.blocks for start, end in pairwise(block.ends.tolist())]

    @property
    def widths(self) -> list[int]:
        """The tokens of each row as the model computes it: of a pair twice its longer text."""
        widths: list[int] = []
        for block in self.blocks:
            lengths = [end - start for start, end in pairwise(block.ends.tolist())]
            cuts = block.rejected.tolist() if len(block.rejected) else [-1] * len(lengths)
            widths += [
                2 * max(cut, length - cut) if cut > 0 else length for cut, length in zip(cuts, lengths, strict=True)
            ]
        return widths

    @property
    def tokens(self) -> int:
        """The tokens of all rows."""
        return sum(len(block.ids) for block in self.blocks)

    def paths(self) -> set[str]:
        """The files of the rows."""
        columns = [block.paths for block in self.blocks]
        return {str(path) for paths in columns for path in (paths if isinstance(paths, list) else paths.unique())}

    def digests(self) -> Iterator[bytes]:
        """A digest of each row's tokens: 16 bytes a row."""
        for block in self.blocks:
            ids = memoryview(block.ids)
            for start, end in pairwise(block.ends.tolist()):
                yield digest(ids[start:end])


class Examples(Sequence[Example]):
    """The examples of held-out rows, each read on access; empty for training rows."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return sum(len(block.examples) for block in self._rows.blocks)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        block, place = self._rows.place(range(len(self))[index])
        return Example.from_json(str(block.examples[place]))


def digest(ids: Integers) -> bytes:
    """The 16-byte BLAKE2b digest of token ids."""
    return hashlib.blake2b(ids, digest_size=16).digest()


class RowWriter:
    """Takes encoded rows one by one and stores them in blocks: in memory, or where a subclass stores them."""

    def __init__(self) -> None:
        self.rows = 0
        """How many rows were appended."""
        self._trained_tokens = 0
        self._blocks: list[Block] = []
        self._begin()

    def append(self, row: Encoded, example: Example | None = None) -> None:
        """Add one row at the end; a held-out row with its example."""
        self._ids.extend(row.input_ids)
        self._labels.extend(row.labels)
        self._ends.append(len(self._ids))
        self._lines.append(row.where.line or 0)
        self._paths.append(row.where.path)
        self._rejected.append(-1 if row.rejected_from is None else row.rejected_from)
        if example is not None:
            self._examples.append(example.as_json())
        self.rows += 1
        self._trained_tokens += row.trained_tokens
        if len(self._ids) >= BLOCK_TOKENS:
            self._end()

    def finish(self) -> Rows:
        """The appended rows; append no more after this."""
        if self._lines:
            self._end()
        return Rows(self._stored(), self._trained_tokens)

    def _begin(self) -> None:
        self._ids, self._labels, self._lines, self._rejected = array("i"), array("i"), array("i"), array("i")
        self._ends = array("i", [0])
        self._paths: list[str] = []
        self._examples: list[str] = []

    def _end(self) -> None:
        rejected = self._rejected if max(self._rejected) >= 0 else array("i")
        self._store(Block(self._ids, self._labels, self._ends, self._lines, self._paths, self._examples, rejected))
        self._begin()

    def _store(self, block: Block) -> None:
        self._blocks.append(block)

    def _stored(self) -> Iterable[Block]:
        return self._blocks


@dataclass(frozen=True)
class Overlong:
    """A row that is longer than max_seq_length: its tokens, and how many of them are still trained."""

    where: Where
    tokens: int
    kept_tokens: int = 0


@dataclass(frozen=True)
class Split:
    """A conversation that became one row an answer: how many, and their tokens beyond the longest of them."""

    where: Where
    rows: int
    extra_tokens: int


@dataclass
class RowSet:
    """The training or the evaluation rows, and what happened to every row that was read."""

    rows: Rows = field(default_factory=Rows)
    read: int = 0
    overlong: list[Overlong] = field(default_factory=list)
    # Broken: never trained. They count against data.max_reject_fraction.
    rejected: list[Problem] = field(default_factory=list)
    # Left out of the training rows by data.deduplicate, and the row that each repeats.
    repeated: list[tuple[Where, Where]] = field(default_factory=list)
    # Left out of the evaluation rows because they are also training rows.
    leaked: list[Problem] = field(default_factory=list)
    # Conversations that became several rows (data.turns).
    split: list[Split] = field(default_factory=list)
    # How many rows lost something that data.may_drop allows, or that the model is asked without, by its name there.
    dropped: dict[str, int] = field(default_factory=dict)
    # Rows by source name, in the recipe's order.
    by_source: dict[str, int] = field(default_factory=dict)
    # In how many rows each column, or key of turns as "[].key", has no effect.
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def without_rows(self) -> list[str]:
        """The files and sources that were read and of which no row is left."""
        places = [row.where for row in self.overlong] + [problem.where for problem in self.rejected]
        lost = {where.path for where in [*places, *(where for where, _ in self.repeated)]}
        empty = {name for name, count in self.by_source.items() if not count}
        return sorted(empty | (lost - self.rows.paths() if lost else lost))

    @property
    def examples(self) -> Examples:
        """The examples of evaluation rows, in the order of `rows`; empty for training rows."""
        return Examples(self.rows)


def reject_record(problem: Problem) -> dict[str, Any]:
    """The line of rejects.jsonl for a row that is not trained."""
    where = {"file": problem.where.path, "line": problem.where.line}
    return {**where, "field": problem.field, "reason": problem.wrong, "got": problem.got, "instead": problem.instead}
