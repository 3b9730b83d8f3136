"""`fastft sweep`: one recipe with several values, as ordinary runs in one folder, and the best of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fastft.console import say
from fastft.errors import DataError, FastftError, Interrupted, MachineError, Problem, TrainingError, UsageError, Where
from fastft.files.atomic import write_text
from fastft.files.records import write_record
from fastft.files.seal import file_sha256
from fastft.planning.check import check
from fastft.recipe.grid import axes_of, trials_of
from fastft.recipe.loader import LoadedRecipe, load
from fastft.recipe.written import recipe_in
from fastft.report.sweep import FILE, best_beside_second, best_of, print_sweep, sweep_page
from fastft.report.sweep import as_json as sweep_as_json
from fastft.runs.directory import RunDir, locked
from fastft.runs.sweep import Failed, Sweep, Trial, read_trial, rungs, survivors, sweep_folder
from fastft.stages.trial import run_trial

BEST = "best.toml"
# How `fastft run` says that memory ran out, which the same values would do again.
NO_MEMORY = "ran out of memory"


@dataclass(frozen=True)
class SweepRequest:
    """The options of `fastft sweep`."""

    overrides: tuple[str, ...]
    most_runs: int | None
    stop_early: bool
    runs_dir: Path


@dataclass
class _Running:
    """A sweep in its folder; `asked` gains the runs that failed."""

    recipe: Path
    folder: Path
    loaded: list[LoadedRecipe]
    asked: Sweep

    def trial(self, number: int) -> Trial:
        """How far the run of that number, from 0 on, is by now."""
        return read_trial(number, self.asked.trials[number], self.folder, self.loaded[number], self.asked)

    @property
    def trials(self) -> list[Trial]:
        return [self.trial(number) for number in range(len(self.loaded))]

    def keep(self) -> None:
        """Write what was asked for and what failed, and the page."""
        write_record(self.folder / Sweep.FILE, self.asked)
        write_text(self.folder / FILE, sweep_page(self.folder, self.trials))


def sweep_in_terminal(recipe: Path, request: SweepRequest, *, as_json: bool) -> None:
    """Make every run, or continue where an earlier call of the same command ended, and print which is best.

    Raises:
        UsageError: there is nothing to try, or nothing to compare runs by.
        FastftError: a run cannot be made at all.
        Interrupted: the sweep was asked to stop.
        TrainingError: no run finished.
    """
    sweep = _begin(recipe, request)
    with locked(RunDir(sweep.folder)):
        sweep.keep()
        _train(sweep)
    trials, made = sweep.trials, best_beside_second(sweep.trials)
    best = best_of(trials)
    written = None if best is None else _write_best(sweep, best)
    if as_json:
        print(json.dumps(sweep_as_json(sweep.folder, trials, made, written), indent=2, ensure_ascii=False))
    else:
        print_sweep(Console(), trials, made)
        print(f"\n{sweep.folder / FILE}" + (f"\n{written}" if written else ""))
    if best is None:
        wrong = f"none of {len(trials)} runs finished with a held-out loss"
        raise TrainingError(Problem(Where(str(sweep.folder)), "", wrong, "see the table; try other values"))


def _begin(recipe: Path, request: SweepRequest) -> _Running:
    """The checked recipes of all runs, and the folder."""
    base = load(recipe)
    trials = tuple(trials_of(axes_of(request.overrides), request.most_runs, base.recipe.train.seed))
    loaded = [load(recipe, overrides) for overrides in trials]
    for one in loaded:
        check(one)
        data = one.recipe.data
        if data.eval is None and data.eval_fraction is None:
            wrong, instead = "holds nothing out, so that no run can be compared", "write data.eval_fraction = 0.1"
            raise UsageError(Problem(Where(str(recipe)), "data.eval", wrong, instead))
    asked = Sweep(str(recipe), file_sha256(recipe), trials, request.stop_early)
    folder, known = sweep_folder(request.runs_dir, recipe, asked)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wrong = f"cannot be made: {error.strerror}"
        raise MachineError(Problem(Where(str(folder)), "--runs-dir", wrong, "name a folder you may write to")) from None
    say(f"{'continuing' if known else 'beginning'} {folder}: {len(trials)} runs")
    return _Running(recipe, folder, loaded, known or asked)


def _train(sweep: _Running) -> None:
    """Every run to the end; with successive halving to one rung after the other, and only the better half goes on."""
    shares = rungs(len(sweep.loaded), stop_early=sweep.asked.stop_early)
    alive = list(range(len(sweep.loaded)))
    for place, share in enumerate(shares):
        for number in alive:
            if not sweep.trial(number).is_at(share):
                _make(sweep, number, share)
        if place + 1 < len(shares):
            kept = [trial.number for trial in survivors([sweep.trial(number) for number in alive], share)]
            say(f"{len(kept)} of {len(alive)} runs go on after {share:.0%} of their steps")
            alive = kept


def _make(sweep: _Running, number: int, share: float) -> None:
    """One run up to that share of its steps.

    Raises:
        FastftError: it cannot be made at all, or was asked to stop.
    """
    trial = sweep.trial(number)
    upto = "" if share == 1 else f", up to {share:.0%} of its steps"
    say(f"run {number + 1} of {len(sweep.loaded)}: {trial.name}{upto}")
    code, asked = run_trial(sweep.recipe, trial.overrides, sweep.folder, share)
    trial = sweep.trial(number)
    if not asked and not trial.is_at(share):
        if code == TrainingError.exit_code or (code == MachineError.exit_code and NO_MEMORY in trial.why):
            failed = Failed(trial.overrides, code, trial.why)
            sweep.asked = dataclasses.replace(sweep.asked, failed=(*sweep.asked.failed, failed))
        else:
            raise _ended(sweep, trial, code)
    sweep.keep()
    if asked:
        wrong = f"stopped in run {number + 1} of {len(sweep.loaded)}"
        raise Interrupted(Problem(Where(str(sweep.folder)), "", wrong, "the same command continues"))


def _ended(sweep: _Running, trial: Trial, code: int) -> FastftError:
    """The error of a run that ends the sweep: that of its process, which has said what is wrong."""
    kinds: dict[int, type[FastftError]] = {2: UsageError, 3: DataError, 75: Interrupted}
    wrong = f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
    problem = Problem(
        Where(str(sweep.folder)), "", f"the run {trial.name} {wrong}", "correct it; the same command goes on"
    )
    return kinds.get(code, MachineError)(problem)


def _write_best(sweep: _Running, best: Trial) -> Path:
    """The recipe of the best run, in the folder of the sweep."""
    head = (
        f"{best.name}: the best of {len(sweep.loaded)} runs of {sweep.recipe.name} by held-out loss, {best.loss:.4f}.\n"
        "Written by fastft sweep; what is not here has its default."
    )
    path = sweep.folder / BEST
    write_text(path, recipe_in(sweep.loaded[best.number], sweep.folder, head))
    return path
