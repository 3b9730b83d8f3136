"""`fastft run`: check, plan, refuse or begin, and make one attempt at the run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastft.console import private_console
from fastft.errors import (
    DataError,
    MachineError,
    RecipeError,
)
from fastft.planning.check import check
from fastft.planning.facts import find_facts
from fastft.planning.plan import make_plan
from fastft.probe.hub import fetch
from fastft.recipe.loader import load
from fastft.report.result import print_result
from fastft.runs.directory import (
    RunDir,
    create_run_dir,
    find_run,
    next_run_dir,
    run_name,
)
from fastft.runs.result import Result
from fastft.stages.attempt import run_attempt


def run(recipe: Path, overrides: Sequence[str], runs_dir: Path, *, resume: bool, console: Console) -> RunDir:
    """The folder of the finished run of a recipe; with `resume`, the newest run of this very recipe is continued.

    A finished run is not run again: with `resume` its folder is returned as it is. Progress goes to `console`; what the
    libraries print goes to the log of the attempt.

    Raises:
        FastftError: anything that a user can fix, before or during training.
        Interrupted: somebody asked the run to stop; a checkpoint was written.
    """
    loaded = load(recipe, overrides)
    check(loaded)
    earlier = find_run(runs_dir, loaded) if resume else None
    if earlier is not None and earlier.is_finished:
        return earlier
    # The first of two plans: what stops the run for sure is said before anything is downloaded or written. The second
    # one is made in the attempt, when the rows are known.
    facts = find_facts(loaded, runs_dir)
    folder = earlier or next_run_dir(runs_dir, run_name(recipe))
    plan = make_plan(loaded, facts, str(folder.path))
    if plan.obstacles:
        raise MachineError(plan.obstacles)
    revision, where = loaded.recipe.model.revision, loaded.where("model.id")
    model = fetch(facts.base_model, revision, where, lambda text: console.print(f"• {text}"))
    facts = dataclasses.replace(facts, base_model=model)
    if earlier is None:
        folder = create_run_dir(runs_dir, loaded)
    try:
        run_attempt(loaded, facts, plan.engine, folder, console, wanted_resume=resume and earlier is None)
    except (RecipeError, DataError, MachineError):
        if earlier is None and not folder.metrics.exists():
            shutil.rmtree(folder.path)  # refused before anything was learnt: nothing in it is worth keeping
        raise
    return folder


def run_in_terminal(recipe: Path, overrides: Sequence[str], runs_dir: Path, *, resume: bool) -> None:
    """Run with progress on standard error, and print what changed."""
    with private_console() as console:
        folder = run(recipe, overrides, runs_dir, resume=resume, console=console)
    result = folder.read(Result)
    if result is not None:
        print_result(Console(), result, str(folder.path))
