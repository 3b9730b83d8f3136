"""Whether a merged folder in bitsandbytes' 4 bits holds base + adapter: the codes and scales of drawn blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastft.exports.four_bit import Blocks, FourBitWeights, open_four_bit
from fastft.exports.merged import choose_dtype, is_layer_matrix
from fastft.exports.tensor_rows import Doubles, compute_rows, difference, draw_rows, missing_names, outside, shown
from fastft.exports.trained import TrainedWeights
from fastft.files.tensors import DTYPES, Floats, as_float32, from_float32

# The 16 values of NF4: quantiles of the normal distribution (Dettmers et al. 2023, QLoRA, appendix E).
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
# Around the middle between two values either one is right: the quotient is rounded to float32.
MIDDLE = 2.0**-20


def check_merged_4bit(trained: TrainedWeights, folder: Path, seed: int) -> tuple[tuple[str, ...], int, int]:
    """(reasons to reject the folder, tensors, rows that were compared).

    Raises:
        MachineError: the folder cannot be read.
    """
    chosen, _ = choose_dtype(trained, "auto")
    kind, rows, wrong = DTYPES[chosen], 0, []
    with open_four_bit(folder) as weights:
        reasons = list(missing_names(trained.shapes, weights.tensors))
        for number, (name, shape) in enumerate(trained.shapes.items()):
            info = weights.tensors.get(name)
            if info is None:
                continue
            packed = is_layer_matrix(trained, name)
            if (info.shape, info.dtype, weights.is_packed(name)) != (shape, kind, packed):
                bits = "4 bits" if weights.is_packed(name) else info.dtype
                wrong.append(f"{name} is {bits} {info.shape}, {'4 bits' if packed else kind} {shape} is right")
                continue
            drawn = draw_rows(trained, name, seed, number)
            rows += len(drawn)
            found = (
                _wrong_blocks(trained, weights, name, drawn) if packed else _wrong_rows(trained, weights, name, drawn)
            )
            wrong += [] if found is None else [found]
    return (*reasons, *shown(wrong, len(trained.shapes))), len(trained.shapes), rows


def _wrong_rows(trained: TrainedWeights, weights: FourBitWeights, name: str, drawn: list[int]) -> str | None:
    """What is wrong with a tensor that stays in 16 bits."""
    if len(trained.shapes[name]) < 2:
        found = weights.floats(name).reshape(-1, 1)
    else:
        found = np.stack([weights.floats(name, row, row + 1).reshape(-1) for row in drawn])
    right = compute_rows(trained, name, drawn)
    bad = outside(found, right, weights.tensors[name].dtype)
    return difference(trained, name, name, found, right, bad) if bad.any() else None


def _wrong_blocks(trained: TrainedWeights, weights: FourBitWeights, name: str, drawn: list[int]) -> str | None:
    """What is wrong with the blocks in which the `drawn` rows of a matrix lie."""
    count = bad = 0
    for blocks, lowest, highest in _blocks(trained, weights, name, drawn):
        if not np.array_equal(blocks.table, NF4):
            return f"{name} has another table than NF4"
        wrong = _wrong(blocks, lowest, highest)
        count, bad = count + len(wrong), bad + int(wrong.sum())
    return f"{name} differs from base + adapter in {bad} of {count} blocks" if bad else None


def _blocks(
    trained: TrainedWeights, weights: FourBitWeights, name: str, drawn: list[int]
) -> Iterator[tuple[Blocks, Floats, Floats]]:
    """For each drawn row its whole blocks, and the least and the largest values that their weights can have had."""
    height, width = trained.shapes[name]
    size, kind = weights.blocks(name, 0, 1).size, weights.tensors[name].dtype
    for row in drawn:
        first, last = row * width // size, math.ceil((row + 1) * width / size)
        begin, end = first * size // width, min(height, math.ceil(last * size / width))
        right = compute_rows(trained, name, range(begin, end))
        start, stop = first * size - begin * width, min(last * size, height * width) - begin * width

        def stored(values: Doubles, start: int = start, stop: int = stop) -> Floats:
            return as_float32(from_float32(values.astype(np.float32), kind), kind).reshape(-1)[start:stop]

        yield weights.blocks(name, first, last), stored(right.values - right.error), stored(right.values + right.error)


def _wrong(blocks: Blocks, lowest: Floats, highest: Floats) -> NDArray[np.bool_]:
    """(blocks,) whether a code or the scale is none of what values between `lowest` and `highest` give."""
    least, most = (_by_block(values, blocks.size) for values in (lowest, highest))
    codes = _by_block(blocks.codes.astype(np.float32), blocks.size).astype(np.uint8)
    sizes = np.abs(least), np.abs(most)
    # The largest size in a block has the extreme code; all others are compared with it.
    smaller = np.where(np.sign(least) == np.sign(most), np.minimum(*sizes), 0.0).max(axis=1)
    larger = np.maximum(*sizes).max(axis=1)
    scale = blocks.scales
    wrong = (scale < smaller - blocks.scale_error) | (scale > larger + blocks.scale_error)
    floor = np.minimum(_quotient(least, smaller), _quotient(least, larger)) - MIDDLE
    ceiling = np.maximum(_quotient(most, smaller), _quotient(most, larger)) + MIDDLE
    middles = (NF4[1:] + NF4[:-1]) / 2
    low, high = (np.searchsorted(middles, values) for values in (floor, ceiling))
    found: NDArray[np.bool_] = wrong | ((codes < low) | (codes > high)).any(axis=1)
    return found


def _quotient(values: Floats, scale: Floats) -> Floats:
    safe = np.where(scale > 0, scale, 1.0).astype(np.float32)
    quotient: Floats = values / safe[:, None]
    return quotient


def _by_block(values: Floats, size: int) -> Floats:
    """(blocks, size); the last one is filled up with its own last value."""
    missing = -len(values) % size
    return np.concatenate((values, np.repeat(values[-1:], missing))).reshape(-1, size)
