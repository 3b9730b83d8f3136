from __future__ import annotations

import random
import time

import pytest

from fastft.data.packing import pack


def log_normal_lengths(count: int, longest: int, seed: int = 1) -> list[int]:
    """Lengths like those of chat data: median 185, mean 297 (log-normal, sigma 1)."""
    source = random.Random(seed)  # noqa: S311 -- lengths, not secrets
    return [min(longest, max(1, round(source.lognormvariate(5.22, 1.0)))) for _ in range(count)]


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """How many rows the plain algorithm makes, example by example."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            tightest = min(fitting)
            spaces.remove(tightest)
            spaces.append(tightest - length)
        else:
            spaces.append(capacity - length)
    return len(spaces)


@pytest.mark.parametrize("seed", range(20))
def test_it_makes_as_many_rows_as_best_fit_decreasing_one_by_one(seed: int) -> None:
    source = random.Random(seed)  # noqa: S311 -- lengths, not secrets
    capacity = source.choice([7, 50, 300])
    lengths = [source.randint(1, capacity) for _ in range(source.randint(1, 300))]
    assert len(pack(lengths, capacity)) == best_fit_decreasing(lengths, capacity)


@pytest.mark.parametrize("seed", range(20))
def test_every_example_is_in_exactly_one_row_that_it_fits(seed: int) -> None:
    source = random.Random(seed)  # noqa: S311 -- lengths, not secrets
    lengths = [source.randint(1, 64) for _ in range(500)]
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 64


def test_no_token_is_lost_and_little_space_is_empty() -> None:
    lengths = log_normal_lengths(20_000, 2048)
    rows = pack(lengths, 2048)
    assert sum(lengths[index] for row in rows for index in row) == sum(lengths)
    assert sum(lengths) / (len(rows) * 2048) > 0.998


def test_a_hundred_thousand_examples_take_a_fraction_of_a_second() -> None:
    lengths = log_normal_lengths(100_000, 2048)
    began = time.process_time()
    pack(lengths, 2048)
    # 0.06 s of CPU on a 2-core server; an algorithm that works example by example takes over ten times that.
    assert time.process_time() - began < 0.6


def test_an_example_that_does_not_fit_is_refused_and_not_cut() -> None:
    with pytest.raises(ValueError, match="do not fit rows of 10"):
        pack([3, 11], 10)
    assert pack([], 10) == []
