"""`fastft tune --learning-rate`: the loss while the learning rate rises, and the rate that it suggests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fastft.commands.tune import find_subject, save_tuned, telling
from fastft.console import private_console
from fastft.errors import MachineError, Problem, Where
from fastft.planning.learning_rates import (
    RangePoint,
    RangeTest,
    judge_range,
    keep_range_test,
    range_tests_file,
    rising_rates,
)
from fastft.planning.schedule import Schedule
from fastft.planning.timing import Time
from fastft.recipe.rewriting import with_keys
from fastft.report.tuning import rates_page
from fastft.report.units import duration
from fastft.stages.probing import Question, overrides_of
from fastft.stages.tuning import Prober


def find_learning_rate(
    recipe: Path, overrides: Sequence[str], tell: Callable[[str], None]
) -> tuple[RangeTest, Path | None]:
    """A range test of the learning rate on rows of a recipe, and the recipe with the rate that it suggests.

    The steps are of the set-up that is planned, in a process of their own: nothing of what they train is kept.

    Raises:
        FastftError: the recipe cannot be run here, or the process failed.
    """
    subject = find_subject(recipe, overrides, None, tell)
    plan, wanted = subject.plan, subject.loaded.recipe
    rates = rising_rates(full_finetuning=wanted.model.full_finetuning)
    rows = round(plan.schedule.examples_per_optimizer_step or 1)
    took = ""
    if isinstance(plan.time, Time) and isinstance(plan.schedule, Schedule) and plan.schedule.tokens_per_optimizer_step:
        seconds = len(rates) * plan.schedule.tokens_per_optimizer_step / plan.time.tokens_per_second
        took = f", about {duration(seconds)}"
    tell(f"{len(rates)} steps of {rows} examples at rates from {rates[0]:.0e} to {rates[-1]:.0e}{took}")
    keys = overrides_of(plan.set_up, tuple(subject.open_keys), plan.engine, wanted.train.examples_per_step)
    question = Question(plan.set_up, tuple(f"{key}={value}" for key, value in keys.items()), rows, rates)
    points: list[RangePoint] = []

    def show(point: RangePoint) -> None:
        points.append(point)
        tell(f"rate {point.learning_rate:.1e}  loss {point.loss:.3f}")

    with Prober(subject.order) as prober:
        probe = prober.ask(question, show)
    if probe.wrong:
        raise MachineError(Problem(Where(str(subject.log)), "", probe.wrong, "see this log"))
    test = judge_range(points, rows)
    keep_range_test(range_tests_file(), subject.key, test)
    if test.suggested is None:
        return test, None
    values, field = {"train.learning_rate": f"{test.suggested:.1e}"}, "train.learning_rate"
    text = with_keys(subject.loaded.text, values, {field: "fastft tune --learning-rate"}, subject.loaded.path)
    return test, save_tuned(subject, text)


def find_learning_rate_in_terminal(recipe: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Test rates with progress on standard error, and print the suggestion with its reason."""
    with private_console() as console:
        test, written = find_learning_rate(recipe, overrides, telling(console))
    if as_json:
        print(json.dumps(dataclasses.asdict(test) | {"written": None if written is None else str(written)}, indent=2))
        return
    page = Console(highlight=False)
    page.print(rates_page(test), soft_wrap=True)
    if written is not None:
        page.print(f"written: {written}; the report of a run of this recipe shows the curve", soft_wrap=True)
