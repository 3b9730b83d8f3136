"""`fastft reproduce`: a finished run again, and whether it has the same losses."""

from __future__ import annotations

import math
from pathlib import Path

from fastft.commands.run import run_with_progress
from fastft.errors import MeasureError, Problem, UsageError, Where
from fastft.files.records import read_record
from fastft.recipe.loader import load
from fastft.recipe.reference import toml
from fastft.runs.directory import RunDir, Settings, differences
from fastft.runs.history import read_history
from fastft.runs.manifest import Manifest
from fastft.runs.metrics import History
from fastft.runs.planned import Planned
from fastft.stages.attempt import Start

# Kernels of a GPU add in an order that changes from run to run: nats.
ON_A_GPU = 0.01


def reproduce_in_terminal(folder: Path, tolerance: float | None) -> None:
    """Run the run in `folder` again, and print how its losses compare.

    Raises:
        UsageError: it is no finished run, or its recipe is not where it was, or no longer the same.
        DataError: data, base, versions or device changed.
        MeasureError: a loss differs by more than `tolerance` nats.
    """
    run = RunDir(folder)
    planned = read_record(run.plan, Planned)
    if planned is None or run.result is None:
        raise UsageError(Problem(Where(str(folder)), "", "is no finished run", "name one; fastft runs lists them"))
    recipe = Path(planned.recipe)
    if not recipe.is_file():
        wrong, instead = f"its recipe {recipe} is not here", "repeat it from the folder where it was started"
        raise UsageError(Problem(Where(str(folder)), "", wrong, instead))
    settings = run.require(Settings).settings
    overrides = [f"{name}={toml(one.value)}" for name, one in settings.items() if one.origin == "--set"]
    changed = differences(run, load(recipe, overrides))
    if changed:
        wrong = f"is no longer the recipe of {folder}: {', '.join(changed)}"
        raise UsageError(Problem(Where(str(recipe)), "", wrong, f"restore it from {run.recipe}"))
    device = run.require(Manifest).device
    allowed = tolerance if tolerance is not None else 0.0 if device.startswith("CPU") else ON_A_GPU
    again = run_with_progress(recipe, overrides, folder.parent, Start(fresh=True, like=folder))
    print(compared_losses(again.path, read_history(run), read_history(again), allowed))


def compared_losses(again: Path, before: History, now: History, allowed: float) -> str:
    """What two runs that should be the same come to, in a sentence.

    Raises:
        MeasureError: a loss differs by more than `allowed` nats, or is missing.
    """
    old, new = _losses(before), _losses(now)
    if old.keys() != new.keys():
        wrong = f"logged {len(new)} losses, the run before it {len(old)}, or at other steps"
        raise MeasureError(Problem(Where(str(again)), "", wrong, "compare the logs of both"))
    apart = {name: _apart(old[name], new[name]) for name in old}
    wrong_ones = [name for name, distance in apart.items() if distance > allowed]
    if wrong_ones:
        first = wrong_ones[0]
        wrong = f"is not the same run: the {first} is {new[first]!r}, it was {old[first]!r} ({len(wrong_ones)} differ)"
        instead = f"use as many threads as before, or allow it with --tolerance {2 * max(apart.values()):.1g}"
        raise MeasureError(Problem(Where(str(again)), "", wrong, instead))
    most = max(apart.values(), default=0.0)
    if most == 0:
        return f"Reproduced bit by bit: all {len(old)} losses of {again} are the same"
    return f"Reproduced within {allowed:g} nats: the {len(old)} losses of {again} differ by {most:.2g} at most"


def _losses(history: History) -> dict[str, float]:
    held_out = {f"held-out loss at step {each.step}": each.loss for each in history.evaluations}
    known = {name: loss for name, loss in held_out.items() if loss is not None}
    return {f"loss of step {step.step}": step.loss for step in history.steps} | known


def _apart(one: float, other: float) -> float:
    """The distance of two losses; 0 where neither is a number."""
    if math.isnan(one) and math.isnan(other):
        return 0.0
    distance = abs(one - other)
    return math.inf if math.isnan(distance) else distance
