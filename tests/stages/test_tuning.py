"""The search of `fastft tune`, and what becomes of a process that dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.planning.chooser import Candidate
from fastft.planning.probes import Probe, SetUp
from fastft.stages.probing import Order, Question
from fastft.stages.tuning import HOPELESS, Prober, rate_of, search

LIMIT = 1000
BATCHES = (1, 2, 4, 8, 16)


def candidates(forecast: Callable[[SetUp], float], fits: Callable[[SetUp], bool] = lambda _: True) -> list[Candidate]:
    """Five micro-batches, with and without recomputing."""
    set_ups = [SetUp(batch, False, recomputes, False, "float32") for recomputes in (False, True) for batch in BATCHES]
    return [Candidate(each, forecast(each), 0, fits(each)) for each in set_ups]


def probing(rate: Callable[[SetUp], float], peak: Callable[[SetUp], int] = lambda _: 0) -> Callable[[SetUp], Probe]:
    def ask(set_up: SetUp) -> Probe:
        if peak(set_up) > LIMIT:
            return Probe(set_up, LIMIT, out_of_memory=True, wrong="out of memory")
        return Probe(set_up, LIMIT, rate(set_up), peak(set_up))

    return ask


def tried(probes: list[Probe], *, recomputes: bool = False) -> list[int]:
    return [each.set_up.per_device_train_batch_size for each in probes if each.set_up.recomputes == recomputes]


def halved(set_up: SetUp) -> float:
    return 0.5 if set_up.recomputes else 1.0


def test_the_batch_is_doubled_until_it_is_slower() -> None:
    truth = {1: 50.0, 2: 70.0, 4: 90.0, 8: 95.0, 16: 92.0}
    listed = candidates(lambda each: halved(each) * (10.0 if each.per_device_train_batch_size == 2 else 9.0))

    probes = search(listed, probing(lambda each: halved(each) * truth[each.per_device_train_batch_size]), lambda: True)

    assert tried(probes) == [2, 4, 8, 16]
    assert max(probes, key=rate_of).set_up.per_device_train_batch_size == 8
    assert tried(probes, recomputes=True) == [2], "half as fast at first: a larger batch gains less"
    assert HOPELESS > 0.5


def test_where_the_forecast_likes_too_much_the_batch_is_halved() -> None:
    truth = {1: 50.0, 2: 70.0, 4: 65.0, 8: 60.0, 16: 40.0}
    listed = candidates(lambda each: halved(each) * each.per_device_train_batch_size)

    probes = search(listed, probing(lambda each: halved(each) * truth[each.per_device_train_batch_size]), lambda: True)

    assert tried(probes) == [16, 8, 4, 2, 1]


def test_memory_that_runs_out_ends_a_probe_and_not_the_search() -> None:
    listed = candidates(lambda each: halved(each) * each.per_device_train_batch_size)

    def peak(set_up: SetUp) -> int:
        return set_up.per_device_train_batch_size * (100 if set_up.recomputes else 400)

    probes = search(listed, probing(lambda each: halved(each) * 100.0, peak), lambda: True)

    assert tried(probes) == [16, 8, 4, 2, 1]
    best = max(probes, key=rate_of)
    assert (best.set_up.per_device_train_batch_size, best.set_up.recomputes) == (2, False)
    assert [each.out_of_memory for each in probes[:3]] == [True, True, True]
    assert tried(probes, recomputes=True)[0] == 16


def test_nine_tenths_of_memory_are_the_limit() -> None:
    assert rate_of(Probe(SetUp(1, False, False, False, "float32"), LIMIT, 5.0, 900)) == 5.0
    assert rate_of(Probe(SetUp(1, False, False, False, "float32"), LIMIT, 5.0, 901)) == 0.0


def test_the_search_begins_with_what_fits_by_the_forecast() -> None:
    listed = candidates(
        lambda each: halved(each) * each.per_device_train_batch_size, lambda each: each.per_device_train_batch_size <= 4
    )

    probes = search(listed, probing(lambda each: halved(each) * 100.0 / each.per_device_train_batch_size), lambda: True)

    assert tried(probes)[0] == 4


def test_the_search_ends_when_time_is_up() -> None:
    left = iter([True, True, False, False, False, False])
    listed = candidates(lambda each: halved(each) / each.per_device_train_batch_size)

    probes = search(listed, probing(lambda each: each.per_device_train_batch_size * 10.0), lambda: next(left))

    assert tried(probes) == [1, 2, 4]
    assert tried(probes, recomputes=True) == []


def test_a_process_that_cannot_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    order = Order(str(tmp_path / "missing.toml"), (), "transformers", LIMIT, str(tmp_path / "log.txt"))
    question = Question(SetUp(1, False, False, False, "float32"), (), 1)

    with Prober(order) as prober, pytest.raises(MachineError, match=r"log\.txt.*did not start"):
        prober.ask(question)

    assert "no such file" in (tmp_path / "log.txt").read_text(encoding="utf-8")
