"""Better, worse or not known: what the figures of a run allow to say."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from functools import cache

import pytest

from fastft.runs.intervals import change_interval, paired_difference
from fastft.runs.result import BeforeAfter, ExactMatch, PairedBatch, ShownAnswer
from fastft.runs.verdict import judge, match_difference
from tests.report.made_up import RESULT, with_figures

CASES = [(50, 0.5, 0.05), (50, 0.3, 0.3), (50, 0.2, 0.1), (100, 0.1, 0.1), (100, 0.8, 0.02), (100, 0.05, 0.02)]
interval_of = cache(paired_difference)


@pytest.mark.parametrize(("rows", "gain", "loss"), CASES)
def test_the_interval_covers_the_true_difference_in_950_of_1000_made_up_results(
    rows: int, gain: float, loss: float
) -> None:
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    covered = 0
    for _ in range(1000):
        draws = [chance.random() for _ in range(rows)]
        gained, lost = sum(draw < gain for draw in draws), sum(gain <= draw < gain + loss for draw in draws)
        interval = interval_of(rows, gained, lost)
        covered += interval.low <= gain - loss <= interval.high

    assert 930 <= covered <= 970


@pytest.mark.parametrize(("gain", "loss"), [(gain, loss) for rows, gain, loss in CASES if rows == 50])
def test_it_covers_95_percent_of_all_possible_results(gain: float, loss: float) -> None:
    rows, covered = 50, 0.0
    for gained, lost in itertools.product(range(rows + 1), repeat=2):
        same = rows - gained - lost
        if same < 0:
            continue
        ways = math.comb(rows, gained) * math.comb(rows - gained, lost)
        probability = ways * gain**gained * loss**lost * (1 - gain - loss) ** same
        if probability > 1e-9:
            interval = interval_of(rows, gained, lost)
            covered += probability * (interval.low <= gain - loss <= interval.high)

    assert covered == pytest.approx(0.95, abs=0.02)


def test_with_hardly_any_changed_answer_the_interval_is_wide_rather_than_wrong() -> None:
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    covered = 0
    for _ in range(1000):
        gained = sum(chance.random() < 0.02 for _ in range(50))
        interval = interval_of(50, gained, 0)
        covered += interval.low <= 0.02 <= interval.high

    assert covered >= 930


def test_without_a_changed_answer_the_interval_is_that_of_its_equation() -> None:
    interval = paired_difference(50, 0, 0)

    # Tango's equation with no gained and no lost answer, solved by hand: z^2 / (n + z^2).
    assert interval.high == pytest.approx(1.959964**2 / (50 + 1.959964**2), abs=1e-6)
    assert interval.low == pytest.approx(-interval.high, abs=1e-9)


def made_up_batches(draw: Callable[[], float], chance: random.Random, count: int) -> list[PairedBatch]:
    """Micro-batches of four rows of 5 to 50 tokens, the loss of each changed by `draw()` a token."""
    made = []
    for _ in range(count):
        lengths = [chance.randint(5, 50) for _ in range(4)]
        made.append(PairedBatch(0.0, sum(length * draw() for length in lengths), sum(lengths)))
    return made


@pytest.mark.parametrize(("shape", "count"), [("bell", 13), ("bell", 40), ("skewed", 40)])
def test_the_interval_of_the_loss_covers_the_true_change_in_950_of_1000_made_up_results(shape: str, count: int) -> None:
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    draws = {"bell": lambda: chance.gauss(-0.1, 0.3), "skewed": lambda: 0.2 - chance.expovariate(1 / 0.3)}
    covered = 0
    for _ in range(1000):
        interval = change_interval(made_up_batches(draws[shape], chance, count))
        assert interval is not None
        covered += interval.low <= -0.1 <= interval.high

    assert 930 <= covered <= 970


@pytest.mark.parametrize(("count", "quantile"), [(5, 2.776), (7, 2.447), (11, 2.228), (31, 2.042), (1001, 1.962)])
def test_few_micro_batches_widen_the_interval_as_student_says(count: int, quantile: float) -> None:
    batches = [PairedBatch(10.0, 10.0 + (-1) ** number, 10) for number in range(count - 1)] + [PairedBatch(1, 1, 10)]

    interval = change_interval(batches)

    assert interval is not None
    # Changes of +-0.1 a token with the mean 0: their standard error by hand.
    error = 0.1 * math.sqrt((count - 1) / (count * (count - 1)))
    assert (interval.high - interval.low) / 2 / error == pytest.approx(quantile, abs=0.002)


def test_no_interval_is_made_up_of_too_few_or_broken_batches() -> None:
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    batches = made_up_batches(chance.random, chance, 40)

    assert change_interval(batches[:4]) is None
    assert change_interval([*batches, PairedBatch(1.0, float("nan"), 10)]) is None


def test_a_loss_whose_interval_has_0_in_it_does_not_tell() -> None:
    batches = tuple(PairedBatch(10.0, 10.0 + change, 10) for change in (3, -3, 2, -2, 1, -1.5))
    result = with_figures(RESULT, BeforeAfter(1.0, 0.9917), None)

    verdict = judge(dataclasses.replace(result, eval_batches=batches))

    assert verdict.word == "cannot tell"
    assert "95 % interval of the change -0." in verdict.because


def answers(gained: int, lost: int, same: int) -> ExactMatch:
    shown = (
        [ShownAnswer("?", "yes", "no", "<think>hm</think> yes ")] * gained
        + [ShownAnswer("?", "yes", "yes", "no")] * lost
        + [ShownAnswer("?", "yes", "no", "no")] * same
    )
    return ExactMatch(len(shown), lost, gained, shown[0], tuple(shown))


def test_answers_are_paired_row_by_row_reasoning_aside() -> None:
    difference = match_difference(answers(12, 3, 35))

    assert difference is not None
    assert (difference.rows, difference.gained, difference.lost, difference.share) == (50, 12, 3, 0.18)


@pytest.mark.parametrize(
    ("loss", "match", "expected"),
    [
        (BeforeAfter(3.0, 0.25), None, "Better: the held-out loss fell from 3.0000 to 0.2500"),
        (BeforeAfter(0.25, 3.0), None, "Worse: the held-out loss rose from 0.2500 to 3.0000"),
        (BeforeAfter(3.0, float("nan")), None, "Worse: the held-out loss rose from 3.0000 to nan"),
        (BeforeAfter(None, None), None, "Cannot tell: nothing was held out"),
        (BeforeAfter(3.0, 0.25), answers(20, 0, 30), "Better: exact match moved by +40 points on 50 held-out rows"),
        (BeforeAfter(3.0, 0.25), answers(0, 20, 30), "Worse: exact match moved by -40 points on 50 held-out rows"),
        (BeforeAfter(3.0, 0.25), answers(1, 0, 49), "Better: the held-out loss fell from 3.0000 to 0.2500 and exact"),
        (BeforeAfter(3.0, 0.25), answers(0, 1, 49), "Cannot tell: exact match moved by -2 points on 50"),
        (BeforeAfter(None, None), answers(3, 1, 46), "Cannot tell: exact match moved by +4 points on 50"),
    ],
)
def test_the_verdict_says_which_figure_decides(loss: BeforeAfter, match: ExactMatch | None, expected: str) -> None:
    assert str(judge(with_figures(RESULT, loss, match))).startswith(expected)


def test_a_verdict_that_cannot_be_given_says_how_many_rows_would_tell() -> None:
    difference = match_difference(answers(3, 1, 46))

    assert difference is not None
    needed = difference.rows_that_would_tell
    assert needed is not None
    assert paired_difference(needed, 3 * needed / 50, needed / 50).word == "better"
    assert paired_difference(needed - 1, 3 * (needed - 1) / 50, (needed - 1) / 50).word == "cannot tell"
    assert str(judge(with_figures(RESULT, BeforeAfter(None, None), answers(3, 1, 46)))).endswith(
        f"; with the same shares, {needed:,} rows would tell"
    )
