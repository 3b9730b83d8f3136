"""The data sources of a recipe: which rows are trained and how often, by their limits and weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.json_rows import Row
from fastft.data.lines import MAX_ROW_BYTES
from fastft.data.readers import count_rows, find_files, is_hub_data, joint_digest, read_rows
from fastft.files.seal import file_sha256

if TYPE_CHECKING:
    from fastft.recipe.model import DataSection


@dataclass(frozen=True)
class Source:
    """One source of rows. `key`: its key in the recipe. `weight`: how often each row is used in one epoch."""

    path: str
    key: str
    name: str
    weight: float = 1.0
    limit: int | None = None
    max_row_bytes: int = MAX_ROW_BYTES

    def rows(self, recipe_dir: Path) -> Iterator[Row]:
        """The rows up to the limit."""
        return islice(read_rows(self.path, recipe_dir, self.key, self.max_row_bytes), self.limit)

    def count(self, recipe_dir: Path) -> int | None:
        """How many rows `rows` gives; None for a Hub dataset."""
        total = count_rows(self.path, recipe_dir, self.key, self.max_row_bytes)
        if total is None or self.limit is None:
            return total
        return min(total, self.limit)

    def sha256(self, recipe_dir: Path) -> str:
        """The SHA-256 of the files' contents; for a Hub dataset, of its revision.

        Raises:
            DataError: the source does not exist.
            MachineError: the Hub cannot be reached, or `datasets` is not installed.
        """
        if is_hub_data(self.path, recipe_dir):
            from fastft.data.hub import hub_sha256

            return hub_sha256(self.path, self.key)
        return joint_digest([file_sha256(file) for file in find_files(self.path, recipe_dir, self.key)])


def training_sources(data: DataSection) -> tuple[Source, ...]:
    """The sources of the training rows, in the recipe's order."""
    most = data.max_row_bytes
    if data.train is not None:
        return (Source(data.train, "data.train", data.train, max_row_bytes=most),)
    return tuple(
        Source(entry.path, f"data.sources[{index}].path", entry.name or entry.path, entry.weight, entry.limit, most)
        for index, entry in enumerate(data.sources)
    )


def evaluation_source(data: DataSection) -> Source | None:
    """The source of `data.eval`, or None."""
    return None if data.eval is None else Source(data.eval, "data.eval", data.eval, max_row_bytes=data.max_row_bytes)


def count_training_rows(data: DataSection, recipe_dir: Path) -> int | None:
    """How many training rows one epoch has before any is dropped, without `eval_fraction`; None for Hub datasets.

    Raises:
        DataError: a source does not exist.
    """
    total = 0
    for source in training_sources(data):
        count = source.count(recipe_dir)
        if count is None:
            return None
        total += round(count * source.weight)
    if data.eval_fraction is not None:
        total -= max(1, round(total * data.eval_fraction))
    return total


def copies(source: Source, recipe_dir: Path, seed: int) -> Iterator[int]:
    """How often each row of `source`, in order, is used in one epoch; the same for the same seed."""
    whole, part = divmod(source.weight, 1)
    if not part:
        while True:
            yield int(whole)
    total = source.count(recipe_dir)
    if total is None:
        total = sum(1 for _ in source.rows(recipe_dir))
    # Seeded, because the same seed must draw the same rows.
    drawn = set(random.Random(seed).sample(range(total), round(total * part)))  # noqa: S311
    for number in range(total):
        yield int(whole) + (number in drawn)
