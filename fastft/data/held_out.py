"""Held-out rows, which are evaluated and never trained: choose them, and remove those that are also training rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.rows import Rows, RowSet, RowWriter
from fastft.data.sources import training_sources
from fastft.errors import DataError, Problem, Where

if TYPE_CHECKING:
    from fastft.recipe.model import DataSection


def held_out_rows(data: DataSection, seed: int, recipe_dir: Path, locate: Callable[[str], Where]) -> frozenset[int]:
    """The numbers, from 0 over all sources, of the training rows that `eval_fraction` holds out.

    Raises:
        DataError: no row would be left to train on, or a source cannot be read.
        MachineError: a Hub dataset cannot be reached.
    """
    if data.eval_fraction is None:
        return frozenset()
    total = 0
    for source in training_sources(data):
        count = source.count(recipe_dir)
        total += sum(1 for _ in source.rows(recipe_dir)) if count is None else count
    count = max(1, round(total * data.eval_fraction))
    if count >= total:
        wrong = f"{data.eval_fraction} of {total} rows leaves nothing to train on"
        raise DataError(Problem(locate("data.eval_fraction"), "data.eval_fraction", wrong, "add rows"))
    # Seeded, because the same seed must hold out the same rows.
    return frozenset(random.Random(seed).sample(range(total), count))  # noqa: S311


def without_leaks(train: Rows, held_out: RowSet, writer: RowWriter) -> RowSet:
    """`held_out` without rows that are also in `train`, which would only measure memory; `writer` writes the rest.

    Keeps one digest for each held-out row, so that both sets can be larger than memory.
    """
    digests = list(held_out.rows.digests())
    trained = dict.fromkeys(digests)  # the number of the first training row with these tokens
    for number, digest in enumerate(train.digests()):
        if digest in trained and trained[digest] is None:
            trained[digest] = number
    clean = RowSet(read=held_out.read, overlong=held_out.overlong, rejected=held_out.rejected)
    clean.by_source, clean.unused = held_out.by_source, held_out.unused
    for row, example, digest in zip(held_out.rows, held_out.examples, digests, strict=True):
        known = trained[digest]
        if known is None:
            writer.append(row, example)
        else:
            wrong = f"this evaluation row is also trained, at {train.where(known)}"
            clean.leaked.append(Problem(row.where, "", wrong, "remove it from one of the two"))
    clean.rows = writer.finish()
    return clean
