"""The padding forecast against a replay: the run's own sampler, TRL's own collator, tokens counted in its batches."""

from __future__ import annotations

import random

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fastft.data.order import grouped, shuffled
from fastft.engine.sampler import EpochSampler
from fastft.planning.batching import Mode, Padding, measure, packed_rows

CAPACITY = 256
ROWS = 1300
SEED = 3407
STEP = 16
HALF_A_POINT = 0.005


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    """Log-normal, as chat rows are: most short, a few as long as fits."""
    source = random.Random(5)  # noqa: S311 -- lengths, no secrets
    return [min(CAPACITY, max(1, round(source.lognormvariate(4.0, 0.8)))) for _ in range(ROWS)]


@pytest.fixture(scope="module")
def table(lengths: list[int]) -> dict[tuple[Mode, int], Padding]:
    rows = measure(
        lengths,
        packed_rows(lengths, CAPACITY),
        capacity=CAPACITY,
        seed=SEED,
        batches=(1, 2, 4, 8, 16),
        rows_per_step=STEP,
    )
    return {(row.mode, row.batch): row for row in rows}


def replay(lengths: list[int], mode: Mode, batch: int) -> tuple[float, float]:
    """Padding share and real tokens a micro-batch, counted in the batches of one epoch."""
    data = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    if mode == "packing":
        data = pack_dataset(data, CAPACITY, "bfd")
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=mode in ("padding_free", "packing"))
    by_length = lengths if mode in ("group_by_length", "random") else None
    step = batch * max(1, round(STEP / batch))
    sampler = EpochSampler(len(data), SEED, by_length, step, grouped=mode == "group_by_length")
    loader = DataLoader(data, batch_size=batch, sampler=sampler, collate_fn=collator)  # type: ignore[arg-type]
    real = computed = batches = 0
    for made in loader:
        real += int((made["input_ids"] == 1).sum())
        computed += made["input_ids"].numel()
        batches += 1
    return 1 - real / computed, real / batches


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("mode", ["random", "group_by_length", "padding_free", "packing"])
def test_padding_is_what_the_real_sampler_and_collator_make(
    lengths: list[int], table: dict[tuple[Mode, int], Padding], mode: Mode, batch: int
) -> None:
    share, tokens = replay(lengths, mode, batch)

    forecast = table[mode, batch]
    assert forecast.padding_share == pytest.approx(share, abs=HALF_A_POINT)
    assert forecast.useful_tokens == pytest.approx(tokens, rel=HALF_A_POINT)


@pytest.mark.parametrize(("count", "seed"), [(0, 1), (1, 2), (2, 3), (480, 3407), (5000, 2**32 - 1), (100, 2**32 + 5)])
def test_rows_are_shuffled_as_torch_shuffles_them(count: int, seed: int) -> None:
    generator = torch.Generator()
    generator.manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist()

    assert shuffled(count, seed) == order
    assert shuffled(count, seed, first=7) == order[:7]


@pytest.mark.parametrize(("count", "step"), [(1, 2), (5, 2), (480, 8), (1000, 72), (3000, 4)])
def test_rows_are_grouped_as_transformers_groups_them(lengths: list[int], count: int, step: int) -> None:
    chosen = (lengths * 3)[:count]
    generator = torch.Generator()
    generator.manual_seed(7)

    assert grouped(chosen, shuffled(count, 7), step) == get_length_grouped_indices(chosen, step, generator=generator)


def test_packed_rows_hold_what_trl_packs(lengths: list[int]) -> None:
    made = pack_dataset(Dataset.from_dict({"input_ids": [[1] * length for length in lengths]}), CAPACITY, "bfd")

    assert sorted(packed_rows(lengths, CAPACITY)) == sorted(len(row) for row in made["input_ids"])
