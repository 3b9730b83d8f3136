"""The order of the rows in each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochSampler(Sampler[int]):
    """The order of the rows in each epoch, from the seed and the epoch alone, so that a resumed run continues in it.

    transformers' own LengthGroupedSampler draws from the global generator, which a resume restores too late: later
    epochs then come in another order (measured with transformers 5.17). With `lengths`, rows are grouped by length in
    mega-batches of 50 x `batch` rows, as transformers does it; without, they are shuffled.
    """

    def __init__(self, rows: int, seed: int, lengths: list[int] | None, batch: int) -> None:
        self._rows, self._seed, self._lengths, self._batch = rows, seed, lengths, batch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        if self._lengths is None:
            yield from torch.randperm(self._rows, generator=generator).tolist()
        else:
            yield from get_length_grouped_indices(self._lengths, self._batch, generator=generator)
