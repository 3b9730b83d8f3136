from __future__ import annotations

import random
from itertools import chain
from typing import get_args

import pytest

from fastft.data.batching import Order, grouped, measure, plain, step_sorted

SOURCE = random.Random(1)  # noqa: S311 -- lengths, not secrets
LENGTHS = [min(2048, max(1, round(SOURCE.lognormvariate(5.22, 1.0)))) for _ in range(7201)]


def test_every_order_has_each_example_once() -> None:
    for batches in (plain(LENGTHS, 2, 7), step_sorted(LENGTHS, 2, 36, 7), grouped(LENGTHS, 2, 36, 7)):
        assert sorted(chain.from_iterable(batches)) == list(range(len(LENGTHS)))
        assert {len(batch) for batch in batches[:-1]} == {2}


def test_sorting_inside_a_step_leaves_each_step_its_examples() -> None:
    step = 36
    ordered, sorted_within = plain(LENGTHS, 2, 7), step_sorted(LENGTHS, 2, step, 7)
    for start in range(0, len(ordered), step):
        one, other = ordered[start : start + step], sorted_within[start : start + step]
        assert sorted(chain.from_iterable(one)) == sorted(chain.from_iterable(other))


def test_grouping_begins_with_the_longest_example() -> None:
    rising = list(range(1, 2001))
    assert {rising[grouped(rising, 2, 3, seed)[0][0]] for seed in range(10)} == {2000}


def test_the_padding_of_each_order_is_measured() -> None:
    measured = measure(LENGTHS, 2, 36, 2048, 7)
    assert set(measured) == set(get_args(Order))
    assert {entry.tokens for entry in measured.values()} == {sum(LENGTHS)}
    waste = {order: round(entry.waste, 3) for order, entry in measured.items()}
    # Log-normal lengths in batches of 2: a third is padding; sorted in steps of 72 about 4 %; grouped under 1 %.
    assert waste["plain"] == pytest.approx(0.335, abs=0.02)
    assert waste["step_sorted"] == pytest.approx(0.043, abs=0.01)
    assert waste["grouped"] < 0.01
    assert waste["packed"] < 0.01


def test_padding_is_counted_to_the_longest_of_each_batch() -> None:
    order = plain([1, 5, 2], 2, 7)
    expected = sum(len(batch) * max([1, 5, 2][index] for index in batch) for batch in order)
    assert measure([1, 5, 2], 2, 1, 8, 7)["plain"].computed_tokens == expected


def test_the_same_seed_gives_the_same_order_and_another_one_another() -> None:
    assert plain(LENGTHS, 2, 7) == plain(LENGTHS, 2, 7) != plain(LENGTHS, 2, 8)
