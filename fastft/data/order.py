"""The exact order in which the trainer takes the rows, computed without torch."""

from __future__ import annotations

import random
from collections.abc import Sequence

# transformers groups by length within this many batches (trainer_pt_utils.get_length_grouped_indices).
MEGA_BATCHES = 50


def shuffled(count: int, seed: int, first: int | None = None) -> list[int]:
    """The numbers 0 to `count` - 1 in the order of `torch.randperm(count)` after `manual_seed(seed)` on a CPU.

    With `first`, only that many numbers from the beginning of the same order, in less time.

    Torch draws 32 bits for each place from MT19937 with its original seeding, and swaps as Fisher and Yates do
    (ATen/native/TensorFactories.cpp, randperm_cpu). Python has the same generator with another seeding.
    """
    draw = _mersenne_twister(seed).getrandbits
    order = list(range(count))
    end = count if first is None else min(first, count)
    for place in range(min(end, count - 1)):
        other = place + draw(32) % (count - place)
        order[place], order[other] = order[other], order[place]
    return order[:end]


def grouped(lengths: Sequence[int], order: Sequence[int], rows_per_step: int) -> list[int]:
    """`order` (or its beginning), sorted by length in mega-batches of up to 50 times `rows_per_step`.

    The longest row of all comes first, so that a batch that does not fit into memory fails in the first step.

    The same as get_length_grouped_indices of transformers, which `train_sampling_strategy="group_by_length"` calls.
    """
    multiple = min(len(lengths) // (rows_per_step * 4), MEGA_BATCHES) or 1
    size = multiple * rows_per_step
    parts = [
        sorted(order[start : start + size], key=lengths.__getitem__, reverse=True)
        for start in range(0, len(order), size)
    ]
    if not parts:
        return []
    longest = max(range(len(parts)), key=lambda number: lengths[parts[number][0]])
    parts[0][0], parts[longest][0] = parts[longest][0], parts[0][0]
    return [index for part in parts for index in part]


def sorted_in_steps(lengths: Sequence[int], order: Sequence[int], rows_per_step: int) -> list[int]:
    """`order` with the rows of each optimizer step, longest first: like lengths share micro-batches.

    Each step keeps its rows, and so its gradient, which sums over all tokens of the step. Rows of one length stay in
    their order.
    """
    steps = (order[start : start + rows_per_step] for start in range(0, len(order), rows_per_step))
    return [index for step in steps for index in sorted(step, key=lengths.__getitem__, reverse=True)]


def _mersenne_twister(seed: int) -> random.Random:
    """Python's generator in the state that `init_genrand(seed)` gives it (Matsumoto and Nishimura 1998)."""
    state = [seed & 0xFFFFFFFF]
    for place in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + place) & 0xFFFFFFFF)
    generator = random.Random()  # noqa: S311 -- the order of rows is no secret
    generator.setstate((3, (*state, 624), None))
    return generator
