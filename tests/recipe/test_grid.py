"""What `fastft sweep` makes of its `--set` texts."""

from __future__ import annotations

import random

import pytest

from fastft.errors import UsageError
from fastft.recipe.grid import axes_of, split_values, trials_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,3e-4", ("1e-4", "3e-4")),
        ("8", ("8",)),
        ('["q_proj","v_proj"],["q_proj"]', ('["q_proj","v_proj"]', '["q_proj"]')),
        ('"a,b", "c"', ('"a,b"', '"c"')),
    ],
)
def test_values_are_split_at_commas_outside_of_brackets_and_quotes(text: str, values: tuple[str, ...]) -> None:
    assert split_values(text) == values


def test_a_grid_has_every_combination_in_its_order() -> None:
    axes = axes_of(["train.learning_rate=1e-4,3e-4", "lora.r=8,16", "train.seed=1"])

    assert trials_of(axes, None, 0) == [
        ("train.learning_rate=1e-4", "lora.r=8", "train.seed=1"),
        ("train.learning_rate=1e-4", "lora.r=16", "train.seed=1"),
        ("train.learning_rate=3e-4", "lora.r=8", "train.seed=1"),
        ("train.learning_rate=3e-4", "lora.r=16", "train.seed=1"),
    ]


def test_some_of_a_grid_are_the_same_with_the_same_seed_and_in_its_order() -> None:
    axes = axes_of(["lora.r=1,2,4,8,16,32,64,128", "train.seed=1,2,3"])
    whole = trials_of(axes, None, 0)

    some = trials_of(axes, 5, 3)

    assert some == trials_of(axes, 5, 3) != trials_of(axes, 5, 4)
    assert len(set(some)) == 5
    assert [whole.index(each) for each in some] == sorted(whole.index(each) for each in some)
    assert trials_of(axes, 100, 0) == whole


def test_a_range_is_drawn_evenly_in_its_logarithm() -> None:
    (axis,) = axes_of(["train.learning_rate=1e-5..1e-3"])
    chance = random.Random(0)  # noqa: S311 -- not for secrets

    drawn = [float(axis.draw(chance)) for _ in range(2000)]

    assert all(1e-5 <= value <= 1e-3 for value in drawn)
    # Half of the draws are below the geometric middle; their share has a standard deviation of 1.1 %.
    assert sum(value < 1e-4 for value in drawn) / 2000 == pytest.approx(0.5, abs=0.05)


def test_a_range_of_whole_numbers_gives_whole_numbers() -> None:
    trials = trials_of(axes_of(["lora.r=4..64", "train.seed=1,2"]), 6, 0)

    assert len(set(trials)) == 6
    assert all(4 <= int(each[0].removeprefix("lora.r=")) <= 64 for each in trials)


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        (["lora.r=8"], "gives no key several values"),
        (["lora.r=8,8"], "has 8 twice"),
        (["lora.r=8,"], "has an empty value"),
        (["train.learning_rate=1e-3..1e-5"], "is no range of numbers above 0"),
        (["train.learning_rate=0..1e-5"], "is no range of numbers above 0"),
        (["train.learning_rate=1e-5..1e-3"], "is a range, which has no end of values"),
        (
            ["lora.r=" + ",".join(map(str, range(1, 41))), "train.seed=" + ",".join(map(str, range(30)))],
            "are 1,200 runs",
        ),
    ],
)
def test_what_cannot_be_tried_is_refused(overrides: list[str], wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        trials_of(axes_of(overrides), None, 0)

    assert wrong in str(caught.value.problems[0])
