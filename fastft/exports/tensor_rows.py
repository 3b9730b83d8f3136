"""Rows of a trained tensor drawn by a seed, computed one by one in float64, and how a stored row compares with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastft.exports.adapter import Adapter
from fastft.exports.trained import TrainedWeights
from fastft.files.tensors import Floats, as_float32, from_float32

# Rows of each tensor, the first and the last among them; a tensor of fewer rows is compared whole.
DRAWN_ROWS = 8
# How far a float32 sum of products may be from the exact one, relative to the sum of their sizes: the standard bound
# is (number of terms) * 2**-24, and the errors of hundreds of terms mostly cancel.
SUM_ERROR = 2.0**-19
# More lines than this say nothing new.
SHOWN = 3

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Some rows of one trained tensor: `values` (rows, columns), each right within `error`."""

    values: Doubles
    error: Doubles
    base: Doubles
    """Without the adapter's low-rank change."""


def draw_rows(trained: TrainedWeights, name: str, seed: int, number: int) -> list[int]:
    """The rows to compare: all of a small tensor, else the first, the last, some trained alone, others by chance."""
    shape = trained.shapes[name]
    single = None if trained.adapter is None else trained.adapter.tokens.get(name)
    alone = () if single is None else single.rows[:DRAWN_ROWS]
    count = shape[0] if shape else 1
    if len(shape) < 2 or count <= DRAWN_ROWS:
        return list(range(count))
    chance = np.random.default_rng((seed, number))
    between = chance.choice(np.arange(1, count - 1), DRAWN_ROWS - 2, replace=False)
    return sorted({0, count - 1, *map(int, between), *alone})


def compute_rows(trained: TrainedWeights, name: str, rows: Sequence[int]) -> Rows:
    """Rows of base + adapter in float64; a tensor of one dimension is one row for each element."""
    adapter = trained.adapter
    weights, source = trained.weights, trained.stored(name).name
    if adapter is not None and name in adapter.replaced:
        weights, source = adapter.weights, adapter.replaced[name]
    if len(trained.shapes[name]) < 2:
        base = weights.floats(source).reshape(-1, 1).astype(np.float64)
    else:
        base = np.stack([weights.floats(source, row, row + 1).reshape(-1) for row in rows]).astype(np.float64)
    low = None if adapter is None else adapter.low_rank.get(name)
    if adapter is None or low is None:
        return Rows(_with_single(adapter, name, base, rows), np.zeros_like(base), base)
    if low.embedding:
        a = adapter.weights.floats(low.a).T.astype(np.float64)
        b = adapter.weights.floats(low.b)[:, list(rows)].T.astype(np.float64)
    else:
        a = adapter.weights.floats(low.a).astype(np.float64)
        b = np.stack([adapter.weights.floats(low.b, row, row + 1)[0] for row in rows]).astype(np.float64)
    values = base + low.scale * (b @ a)
    error = SUM_ERROR * (np.abs(base) + abs(low.scale) * (np.abs(b) @ np.abs(a)))
    if low.magnitude is not None:
        magnitude = adapter.weights.floats(low.magnitude).reshape(-1)[list(rows)].astype(np.float64)
        factor = (magnitude / np.sqrt((values * values).sum(axis=1)))[:, None]
        values, error = values * factor, error * np.abs(factor) + SUM_ERROR * np.abs(values * factor)
    return Rows(values, error, base)


def _with_single(adapter: Adapter | None, name: str, base: Doubles, rows: Sequence[int]) -> Doubles:
    """`base`, the drawn `rows` of a tensor, with those in place that the adapter trains alone."""
    single = None if adapter is None else adapter.tokens.get(name)
    if adapter is None or single is None:
        return base
    alone, places = adapter.weights.floats(single.tensor), {row: at for at, row in enumerate(single.rows)}
    return np.stack([alone[places[row]] if row in places else base[at] for at, row in enumerate(rows)]).astype(
        np.float64
    )


def outside(found: Floats, right: Rows, kind: str) -> NDArray[np.bool_]:
    """(rows,) whether a stored value is not the rounding of any value within the error."""
    lowest = rounded(right.values - right.error, kind)
    highest = rounded(right.values + right.error, kind)
    inside = (found >= lowest) & (found <= highest)
    return np.logical_not(inside.all(axis=1))


def rounded(values: Doubles, kind: str) -> Floats:
    return as_float32(from_float32(values.astype(np.float32), kind), kind)


def missing_names(expected: Any, stored: Any) -> Iterator[str]:
    for what, names in (("lacks", [n for n in expected if n not in stored]),
                        ("holds unknown", [n for n in stored if n not in expected])):  # fmt: skip
        if names:
            yield f"{what} {len(names)} tensors, the first is {names[0]}"


def difference(
    trained: TrainedWeights, name: str, source: str, found: Floats, right: Rows, bad: NDArray[np.bool_]
) -> str:
    """One sentence on a tensor whose stored values differ, with how much of the adapter is in it."""
    text = f"{name} differs from base + adapter in {int(bad.sum())} of {len(bad)} rows"
    change = right.values - right.base
    size = float((change * change).sum())
    if trained.is_changed(source) and size > 0:
        share = float(((found - right.base) * change).sum()) / size
        return f"{text} (the adapter is in it {share:.2f} times)"
    return text


def shown(wrong: list[str], count: int) -> Iterator[str]:
    if wrong:
        more = f"; {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        yield f"{len(wrong)} of {count} tensors are wrong: {'; '.join(wrong[:SHOWN])}{more}"
