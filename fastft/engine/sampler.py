"""The order of the rows in each epoch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from fastft.data.encode import NO_LOSS
from fastft.data.order import sorted_in_steps

# A token predicts the next one: with fewer than two there is nothing to compute a loss on.
TOKENS_WITHOUT_LOSS = 2


class EpochSampler(Sampler[int]):
    """The order of the rows in each epoch, from the seed and the epoch alone, so that a resumed run continues in it.

    transformers' own LengthGroupedSampler draws from the global generator, which a resume restores too late: later
    epochs then come in another order (measured with transformers 5.17). Rows are shuffled, or `grouped` by length in
    mega-batches of 50 x `step_rows`, as transformers does it. With `lengths`, shuffled rows are sorted within each
    optimizer step, which changes no gradient.
    """

    def __init__(self, rows: int, seed: int, lengths: list[int] | None, step_rows: int, *, grouped: bool) -> None:
        self._rows, self._seed, self._lengths, self._step_rows = rows, seed, lengths, step_rows
        self._grouped = grouped
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        if self._lengths is not None and self._grouped:
            yield from get_length_grouped_indices(self._lengths, self._step_rows, generator=generator)
            return
        order = torch.randperm(self._rows, generator=generator).tolist()
        yield from order if self._lengths is None else sorted_in_steps(self._lengths, order, self._step_rows)


class DealtSampler(Sampler[int]):
    """The rows in `order`, laid out so that accelerate deals each rank its share of every optimizer step.

    accelerate gives micro-batch after micro-batch to rank after rank. Each step's rows are split among the ranks with
    equal tokens, the same rows for any number of ranks. Where rows run out, the number of the rows stands for a row
    without loss, so that every rank makes as many micro-batches as the plan counts.
    """

    def __init__(
        self, order: EpochSampler | range, lengths: Sequence[int] | None, *, batch: int, step_rows: int, ranks: int
    ) -> None:
        self._order, self._lengths = order, lengths
        self._batch, self._step_rows, self._ranks = batch, step_rows, ranks

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before each epoch."""
        if isinstance(self._order, EpochSampler):
            self._order.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self._order), self._step_rows)
        return whole * self._slots(self._step_rows) + self._slots(rest)

    def __iter__(self) -> Iterator[int]:
        order = list(self._order)
        for start in range(0, len(order), self._step_rows):
            yield from self._deal(order[start : start + self._step_rows])

    def _slots(self, rows: int) -> int:
        """Places for `rows` rows in micro-batches, as many on each rank."""
        return math.ceil(math.ceil(rows / self._batch) / self._ranks) * self._ranks * self._batch

    def _deal(self, rows: list[int]) -> Iterator[int]:
        def length(row: int) -> int:
            return 1 if self._lengths is None else self._lengths[row]

        room = self._slots(len(rows)) // self._ranks
        shares: list[list[int]] = [[] for _ in range(self._ranks)]
        # The longest row goes to the rank with the fewest tokens so far that has room: equal within one row.
        heap = [(0, rank) for rank in range(self._ranks)]
        for row in sorted(rows, key=length, reverse=True):
            tokens, rank = heapq.heappop(heap)
            shares[rank].append(row)
            if len(shares[rank]) < room:
                heapq.heappush(heap, (tokens + length(row), rank))
        nothing = len(self._order)
        for start in range(0, room, self._batch):
            for share in shares:
                part = share[start : start + self._batch]
                yield from part + [nothing] * (self._batch - len(part))


def with_row_without_loss(dataset: Any) -> Any:
    """`dataset` with one more row at its end: a few tokens that no loss is computed on, for a rank without rows."""
    first = dataset[0]
    row = {name: [value[0]] * TOKENS_WITHOUT_LOSS for name, value in first.items() if isinstance(value, list)}
    row |= {"labels": [NO_LOSS] * TOKENS_WITHOUT_LOSS}
    if "position_ids" in row:
        row["position_ids"] = list(range(TOKENS_WITHOUT_LOSS))
    if "seq_lengths" in row:
        row["seq_lengths"] = [TOKENS_WITHOUT_LOSS]
    more = datasets.Dataset.from_dict({name: [value] for name, value in row.items()}, features=dataset.features)
    return datasets.concatenate_datasets([dataset, more])


def without_padding_rows(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """`collate` for rows among which those without loss are left out, or one is left where there is no other."""

    def collate_rows(rows: list[Any]) -> Any:
        return collate([row for row in rows if not _has_no_loss(row["labels"])] or rows[:1])

    return collate_rows


def is_without_loss(inputs: dict[str, Any]) -> bool:
    """Whether a micro-batch is the row without loss alone."""
    labels = inputs["labels"]
    return labels.numel() == TOKENS_WITHOUT_LOSS and bool((labels == NO_LOSS).all())


def _has_no_loss(labels: Sequence[int]) -> bool:
    return len(labels) == TOKENS_WITHOUT_LOSS and all(int(label) == NO_LOSS for label in labels)
