"""`fastft run`: check, plan, refuse or begin, and make one attempt at the run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastft.console import private_console
from fastft.engine_choice import started
from fastft.errors import DataError, MachineError, Problem, RecipeError
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
    if started() not in (None, plan.engine):  # a program that exported or trained before, such as a notebook
        wrong = f"this process has started {started()}, and one process has one engine"
        instead = "run it in a new process, in a notebook after a restart"
        raise MachineError(Problem(loaded.where("model.engine"), "model.engine", wrong, instead, plan.engine))
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


def run_with_progress(recipe: Path, overrides: Sequence[str], runs_dir: Path, *, resume: bool) -> RunDir:
    """As `run`, with progress on standard error."""
    with private_console() as console:
        return run(recipe, overrides, runs_dir, resume=resume, console=console)


def run_in_terminal(recipe: Path, overrides: Sequence[str], runs_dir: Path, *, resume: bool) -> None:
    """Run with progress on standard error, and print what changed."""
    folder = run_with_progress(recipe, overrides, runs_dir, resume=resume)
    if folder.result is not None:
        print_result(Console(), folder.result, str(folder.path))
