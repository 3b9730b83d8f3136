"""A sweep: ordinary runs of one recipe with other values, in one folder, and how far each of them is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastft.files.records import read_record
from fastft.recipe.loader import LoadedRecipe
from fastft.runs.directory import RunDir, find_run, run_name
from fastft.runs.history import read_history
from fastft.runs.state import State, state_of

# Successive halving (K. Jamieson and A. Talwalkar, AISTATS 2016): half of the runs go on at each rung.
KEPT = 2
MOST_RUNGS = 3


@dataclass(frozen=True)
class Failed:
    """A run that ended in an error of training, which it would do again."""

    overrides: tuple[str, ...]
    exit_code: int
    why: str


@dataclass(frozen=True)
class Sweep:
    """sweep.json: what was asked for. `trials`: the overrides of each run."""

    FILE: ClassVar[str] = "sweep.json"
    SCHEMA: ClassVar[int] = 1

    recipe: str
    recipe_sha256: str
    trials: tuple[tuple[str, ...], ...]
    stop_early: bool
    failed: tuple[Failed, ...] = ()

    def is_same(self, other: Sweep) -> bool:
        """Whether both ask for the same."""
        asked = [(each.recipe_sha256, each.trials, each.stop_early) for each in (self, other)]
        return asked[0] == asked[1]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, and its held-out losses as (share of its optimizer steps, loss), the last one at its end.

    `failed`: it ended in an error that it would end in again, and does not go on.
    """

    number: int
    overrides: tuple[str, ...]
    run: RunDir | None
    state: State | None
    losses: tuple[tuple[float, float], ...] = ()
    why: str = ""
    failed: bool = False

    @property
    def name(self) -> str:
        """The overrides in one text."""
        return " ".join(self.overrides)

    @property
    def share(self) -> float:
        """The share of its steps at its newest held-out loss."""
        return self.losses[-1][0] if self.losses else 0.0

    @property
    def loss(self) -> float | None:
        """The newest held-out loss."""
        return self.losses[-1][1] if self.losses else None

    def loss_at(self, share: float) -> float | None:
        """The first held-out loss at this share of its steps, or after it; of a finished run that of its end."""
        after = [loss for at, loss in self.losses if at >= share - 1e-9]
        return None if not after else after[-1] if share >= 1 else after[0]

    def is_at(self, share: float) -> bool:
        """Whether nothing is left to do up to this share of its steps."""
        return self.failed or self.state == "finished" or (share < 1 and self.loss_at(share) is not None)


def rungs(count: int, *, stop_early: bool) -> list[float]:
    """The shares of the steps after which runs are compared: 1/4, 1/2, 1 for eight runs; only 1 without halving."""
    halvings = min(MOST_RUNGS, int(math.log2(count))) if stop_early and count > 1 else 0
    return [KEPT ** -(halvings - place) for place in range(halvings + 1)]


def survivors(trials: Sequence[Trial], share: float) -> list[Trial]:
    """The better half of the trials by their held-out loss at this share of their steps, in the order they came in.

    By that loss and no later one, so that a sweep that is continued decides as before.
    """
    losses = {trial.number: trial.loss_at(share) for trial in trials if not trial.failed}
    known = sorted((loss, number) for number, loss in losses.items() if loss is not None and math.isfinite(loss))
    kept = {number for _, number in known[: math.ceil(len(trials) / KEPT)]}
    return [trial for trial in trials if trial.number in kept]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Finished runs by held-out loss, then those that stopped by how far they came and their loss, then the rest."""

    def key(trial: Trial) -> tuple[float, float, int]:
        finite = trial.loss is not None and math.isfinite(trial.loss)
        return (-trial.share if finite else 1.0, trial.loss if finite and trial.loss is not None else 0.0, trial.number)

    return sorted(trials, key=key)


def read_trial(number: int, overrides: tuple[str, ...], folder: Path, loaded: LoadedRecipe, known: Sweep) -> Trial:
    """How far the run of these overrides is, by what stands in the folder of the sweep.

    Raises:
        MachineError: a record of the run is damaged.
    """
    run = find_run(folder, loaded)
    if run is None:
        return Trial(number, overrides, None, None)
    history, result = read_history(run), run.result
    total = history.steps[-1].total_steps if history.steps else 0
    losses = [(each.step / total, each.loss) for each in history.evaluations if each.loss is not None and each.step > 0]
    if result is not None:
        end = [] if result.eval_loss.after is None else [(1.0, result.eval_loss.after)]
        return Trial(number, overrides, run, "finished", (*losses, *end))
    state, why = state_of(run)
    failed = next((each for each in known.failed if each.overrides == overrides), None)
    said = failed.why if failed else why if state == "failed" else ""
    return Trial(number, overrides, run, state, tuple(losses), said, failed is not None)


def sweep_folder(runs_dir: Path, recipe: Path, asked: Sweep) -> tuple[Path, Sweep | None]:
    """(the folder of this sweep, what it holds): that of the same sweep where there is one, or else a new one.

    Raises:
        MachineError: the record of a sweep is damaged.
    """
    name = f"{run_name(recipe)}-sweep"
    for number in itertools.count(1):
        folder = runs_dir / (name if number == 1 else f"{name}-{number}")
        known = read_record(folder / Sweep.FILE, Sweep)
        if known is None and not folder.exists():
            return folder, None
        if known is not None and known.is_same(asked):
            return folder, known
    raise AssertionError
