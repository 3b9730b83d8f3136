"""The watch on a run that gets worse: what it must see, and how rarely it may be wrong."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from fastft.runs.divergence import Alarm, DivergenceWatch


def alarms(losses: list[float], norms: list[float] | None = None) -> list[Alarm]:
    watch = DivergenceWatch()
    found = [watch.step(loss, norm) for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True)]
    return [alarm for alarm in found if alarm is not None]


def noisy(values: list[float], noise: float, seed: int = 0) -> list[float]:
    chance = random.Random(seed)  # noqa: S311 -- not for secrets
    return [max(0.0, value + chance.gauss(0, noise)) for value in values]


def test_a_loss_that_doubles_is_a_blow_up() -> None:
    found = alarms(noisy([7.2] * 1 + [14.4] * 20, 0.2))

    assert [alarm.blew_up for alarm in found] == [True]
    assert "the run blew up" in found[0].words


def test_a_loss_that_jumps_and_stays_flat_is_a_drift() -> None:
    """As an adapter times 10,000 does: all that was learnt is lost, and the loss is that of a guess."""
    found = alarms(noisy([7.0 * 0.9**step for step in range(20)] + [5.6] * 15, 0.1))

    assert [alarm.blew_up for alarm in found] == [False]
    assert "and stays there" in found[0].words


def test_a_slow_rise_is_a_drift_once() -> None:
    found = alarms(noisy([2.0 * 0.97**step for step in range(40)] + [0.6 + 0.05 * step for step in range(25)], 0.05))

    assert [alarm.blew_up for alarm in found] == [False]


def test_a_gradient_norm_far_above_the_usual_is_a_drift() -> None:
    found = alarms([2.0] * 40, noisy([1.0] * 20, 0.2) + [100.0] * 20)

    assert [alarm.words.split(" is")[0] for alarm in found] == ["the gradient norm"]


def test_a_flat_loss_without_a_gradient_is_a_drift() -> None:
    found = alarms([7.2] + [5.6] * 12, [2.0] + [1e-6] * 12)

    assert ["nothing is learnt any more" in alarm.words for alarm in found] == [True]


@pytest.mark.parametrize(("losses", "kinds"), [([2.1, 2.2], [False]), ([1.9, 1.5], []), ([2.1, 9.0], [False, True])])
def test_a_held_out_loss_above_that_of_the_untrained_model_is_said(losses: list[float], kinds: list[bool]) -> None:
    watch = DivergenceWatch(untrained=2.0)
    found = [watch.evaluation(loss) for loss in losses]

    assert [alarm.blew_up for alarm in found if alarm is not None] == kinds


def healthy() -> Iterator[list[float]]:
    """Losses of sound runs: fast, slow and flat, with little and much noise of two kinds."""
    chance = random.Random(1)  # noqa: S311 -- not for secrets
    for start, end, decay, noise, lines, skewed in itertools.product(
        (0.7, 2.5, 7.0), (0.02, 0.5, 0.95), (0.9, 0.98, 0.999), (0.02, 0.1, 0.3), (40, 400), (False, True)
    ):
        for _ in range(4):
            values = [start * (end + (1 - end) * decay**line) for line in range(lines)]
            yield [
                value * math.exp(chance.gauss(0, noise)) if skewed else max(0.0, chance.gauss(value, noise * value))
                for value in values
            ]


def test_sound_runs_give_an_alarm_in_two_of_a_thousand_at_most() -> None:
    runs = list(healthy())
    wrong = sum(1 for losses in runs if alarms(losses))

    assert len(runs) == 1296
    # 2 of 1,296 when the limits were chosen: a noise of 30 %, and a first line of less than half of what was due.
    assert wrong <= 2, f"{wrong} of {len(runs)}"
