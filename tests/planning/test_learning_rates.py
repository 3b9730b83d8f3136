"""The range test of a learning rate: where the loss falls, where it breaks, what is suggested, what is kept."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from fastft.planning.learning_rates import (
    FULL_RANGE,
    LORA_RANGE,
    STEPS,
    RangePoint,
    is_broken,
    judge_range,
    keep_range_test,
    kept_range_tests,
    mean_losses,
    range_tests_file,
    rising_rates,
)

# SmolLM2-135M on the quickstart's rows, 16 a step, from 1e-5 to 7e-2.
MEASURED = (
    *(3.02, 3.14, 3.12, 3.03, 2.99, 3.01, 2.99, 3.09, 2.85, 2.71, 2.78, 2.57, 2.16, 2.19, 1.61, 1.48, 0.84, 0.63),
    *(0.52, 0.31, 0.17, 0.35, 0.28, 0.80, 1.07, 1.02, 7.23, 7.38, 21.98),
)


def points(losses: tuple[float, ...]) -> list[RangePoint]:
    return [RangePoint(1e-5 * 1e4 ** (step / 29), loss) for step, loss in enumerate(losses)]


def test_rates_rise_evenly_by_powers_of_ten() -> None:
    rates = rising_rates(full_finetuning=False)

    assert (rates[0], rates[-1], len(rates)) == (*LORA_RANGE, STEPS)
    factors = [later / earlier for earlier, later in itertools.pairwise(rates)]
    assert max(factors) == pytest.approx(min(factors), rel=1e-3)
    assert rising_rates(full_finetuning=True)[-1] == FULL_RANGE[1] == LORA_RANGE[1] / 10


def test_a_rate_well_below_the_lowest_loss_is_suggested() -> None:
    test = judge_range(points(MEASURED), 16)

    assert test.suggested is not None
    lowest = points(MEASURED)[MEASURED.index(min(MEASURED))].learning_rate
    assert lowest / 8 < test.suggested < lowest / 2
    assert "the mean loss fell from 3.02 to" in test.reason


def test_a_loss_that_does_not_fall_suggests_nothing() -> None:
    flat = tuple(3.0 + 0.05 * math.sin(step) for step in range(30))

    assert judge_range(points(flat), 16).suggested is None
    assert judge_range(points((3.0,)), 16).suggested is None
    assert judge_range([], 16).suggested is None


def test_what_is_no_number_is_left_out() -> None:
    broken = judge_range(points((*MEASURED[:22], math.nan, math.inf)), 16)

    assert broken.suggested == judge_range(points(MEASURED[:22]), 16).suggested


def test_the_test_ends_where_the_loss_is_beyond_its_begin() -> None:
    ended = next(step for step in range(1, len(MEASURED)) if is_broken(MEASURED[:step]))

    assert MEASURED[ended - 1] == 7.38
    assert is_broken((*MEASURED[:4], math.nan, math.nan))
    assert not is_broken(())


def test_the_running_mean_begins_at_the_first_loss() -> None:
    assert mean_losses([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert mean_losses([2.0, 1.0])[1] < 1.5 + 1e-9


def test_tests_are_kept_the_newest_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = range_tests_file()
    first, second = judge_range(points(MEASURED), 16), judge_range(points(MEASURED[:20]), 16)

    keep_range_test(path, "a", first)
    keep_range_test(path, "b", first)
    keep_range_test(path, "a", second)

    assert kept_range_tests(path) == {"a": second, "b": first}
    path.write_text("[]", encoding="utf-8")
    assert kept_range_tests(path) == {}
