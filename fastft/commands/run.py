"""`fastft run`: check and plan a recipe, and make one attempt at its run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastft.console import is_quiet, private_console
from fastft.engine_choice import started
from fastft.errors import DataError, Interrupted, MachineError, Problem, RecipeError, UsageError, Where
from fastft.files.locks import require_locks
from fastft.planning.check import check
from fastft.planning.facts import find_facts
from fastft.planning.plan import make_plan
from fastft.probe.hub import fetch
from fastft.probe.world import find_world, libraries_see
from fastft.recipe.loader import LoadedRecipe, load
from fastft.report.result import print_result
from fastft.runs.directory import RunDir, create_run_dir, differences, find_run, newest_run, next_run_dir, run_name
from fastft.runs.measured import refuse_failed
from fastft.runs.ranks import Ranks
from fastft.stages.attempt import Start, run_attempt
from fastft.stages.faults import explain
from fastft.stages.stopping import Stopping


def run(recipe: Path, overrides: Sequence[str], runs_dir: Path, start: Start, console: Console) -> RunDir:
    """The folder of the finished run of a recipe; `start` says which run is continued, and whether a new one begins.

    Progress goes to `console`, the output of libraries to the log of the attempt.

    Raises:
        FastftError: anything that a user can fix, before or during training.
        Interrupted: the run was asked to stop; the same command continues.
    """
    require_locks("fastft run")
    with Ranks(find_world()) as ranks, libraries_see(ranks.world):
        return _run(recipe, overrides, runs_dir, start, console if ranks.world.is_first else Console(quiet=True), ranks)


def _run(
    recipe: Path, overrides: Sequence[str], runs_dir: Path, start: Start, console: Console, ranks: Ranks
) -> RunDir:
    """One of the processes of a run; rank 0 chooses and makes its folder."""
    loaded = load(recipe, overrides)
    check(loaded)
    ranks.agree("settings", json.dumps([loaded.text, loaded.settings()], default=str), "settings of the recipe")
    path, notes = ranks.share("choice", lambda: _choose(loaded, runs_dir, start))
    earlier = None if path is None else RunDir(Path(path))
    if earlier is not None and ranks.share("finished", lambda: earlier.is_finished):
        from fastft.stages.weights import refuse_damaged_run  # numpy, which a machine without training packages lacks

        refuse_damaged_run(earlier)
        return earlier
    # The first of two plans: it reports what stops the run for sure, before anything is downloaded or written. The
    # attempt makes the second one when the rows are known.
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
    model = ranks.in_turn(
        "model", lambda: fetch(facts.base_model, revision, where, lambda text: _progress(console, text))
    )
    facts = dataclasses.replace(facts, base_model=model)
    if earlier is None:
        folder = RunDir(Path(ranks.share("folder", lambda: str(create_run_dir(runs_dir, loaded).path))))
    _refuse_unseen(folder)
    try:
        try:
            run_attempt(loaded, facts, plan.engine, folder, console, start, notes, ranks)
        except OSError as error:  # around the attempt: its lock, and the last lines of its log
            raise explain(error, folder) from error
    except (RecipeError, DataError, MachineError):
        if earlier is None and not folder.metrics.exists() and ranks.world.is_first:
            shutil.rmtree(folder.path)  # nothing was trained: the folder holds nothing to keep
        raise
    return folder


def _progress(console: Console, text: str) -> None:
    if not is_quiet():
        console.print(f"• {text}")


def _refuse_unseen(folder: RunDir) -> None:
    """Stop where rank 0 made a folder that this process does not see.

    Raises:
        MachineError: it is not there.
    """
    if not folder.path.is_dir():
        wrong = f"is not on {socket.gethostname()}: rank 0 made it on its host"
        instead = "name a --runs-dir that all hosts share, and start all in the same folder"
        raise MachineError(Problem(Where(str(folder.path)), "--runs-dir", wrong, instead))


def _choose(loaded: LoadedRecipe, runs_dir: Path, start: Start) -> tuple[str | None, list[str]]:
    """(the folder of the run that is continued, None for a new one; what a user should know about the choice).

    Raises:
        UsageError: the run that `start` names is not one of this recipe.
    """
    if start.run is not None:
        if not start.run.is_dir():
            wrong, instead = "there is no such run", "name the folder of a run, or leave --resume out"
            raise UsageError(Problem(Where(f"--resume {start.run}"), "", wrong, instead))
        changed = differences(RunDir(start.run), loaded)
        if changed:
            wrong = f"is not a run of this recipe with these settings: {', '.join(changed)}"
            instead = "undo the change, or leave --resume out: a new run begins"
            raise UsageError(Problem(Where(f"--resume {start.run}"), "", wrong, instead))
        return str(start.run), []
    if start.fresh:
        return None, []
    found = find_run(runs_dir, loaded)
    if found is not None and (start.resume or not found.is_finished):
        return str(found.path), [] if found.is_finished else [f"continuing {found.path}; --fresh begins a new run"]
    other = newest_run(runs_dir, run_name(loaded.path))
    if other is None or found is not None:
        return None, ["no earlier run of this recipe to resume: a new one begins"] if start.resume else []
    state = "" if other.is_finished else ", which did not finish,"
    return None, [f"a new run begins: {other.path}{state} differs in {', '.join(differences(other, loaded))}"]


def run_with_progress(recipe: Path, overrides: Sequence[str], runs_dir: Path, start: Start) -> RunDir:
    """As `run`, with progress on standard error."""
    with private_console() as console, Stopping() as stopping:
        try:
            return run(recipe, overrides, runs_dir, start, console)
        except KeyboardInterrupt:  # an attempt has words of its own for this
            wrong = f"stopped by {stopping.asked.name if stopping.asked else 'the keyboard'} before the run began"
            raise Interrupted(Problem(Where(str(recipe)), "", wrong, "the same command begins it")) from None


def run_in_terminal(
    recipe: Path, overrides: Sequence[str], runs_dir: Path, start: Start, *, as_json: bool = False
) -> None:
    """Run with progress on standard error, and print what changed; as JSON its folder and result, or what failed.

    Raises:
        MeasureError: a condition of eval.fail_if is met.
    """
    folder = run_with_progress(recipe, overrides, runs_dir, start)
    if folder.result is None:
        return
    if as_json:
        refuse_failed(load(recipe, overrides), folder.result)
        print(json.dumps({"run": str(folder.path), "result": dataclasses.asdict(folder.result)}, indent=2, default=str))
    else:
        print_result(Console(), folder.result, str(folder.path))
        refuse_failed(load(recipe, overrides), folder.result)
