"""The runs in a folder, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastft.runs.directory import RunDir
from fastft.runs.history import read_history
from fastft.runs.leftovers import size_of
from fastft.runs.result import Result
from fastft.runs.state import State, state_of


@dataclass(frozen=True)
class Listed:
    """One run. `steps` are done, `seconds` in optimizer steps; `size_bytes` of all files in its folder."""

    name: str
    state: State
    steps: int
    total_steps: int | None
    loss_before: float | None
    loss_after: float | None
    seconds: float
    size_bytes: int
    exports: tuple[str, ...]


def list_runs(folder: Path) -> list[Listed]:
    """Every run in `folder`, in the order of when it began.

    Raises:
        MachineError: a record of a run is damaged.
    """
    runs = [path for path in folder.iterdir() if (path / "recipe.toml").is_file()]
    return [_listed(RunDir(path)) for path in sorted(runs, key=lambda path: (_began(path), path.name))]


def _began(path: Path) -> float:
    """When the run's recipe was written: when the run began."""
    return (path / "recipe.toml").stat().st_mtime


def _listed(run: RunDir) -> Listed:
    result, history = run.result, read_history(run)
    losses = [each.loss for each in history.evaluations if each.loss is not None]
    last = history.steps[-1] if history.steps else None
    before, after = (losses[0] if losses else None), (losses[-1] if len(losses) > 1 else None)
    if result is not None:
        before, after = result.eval_loss.before, result.eval_loss.after
    return Listed(
        name=run.path.name,
        state=state_of(run)[0],
        steps=last.step if last else 0,
        total_steps=last.total_steps if last else None,
        loss_before=before,
        loss_after=after,
        seconds=round(sum(step.seconds for step in history.steps), 1),
        size_bytes=size_of(run.path),
        exports=_exports(run, result),
    )


def _exports(run: RunDir, result: Result | None) -> tuple[str, ...]:
    """The kinds of exported weights, those of later exports too."""
    kinds = [] if result is None else [each.kind for each in result.exports]
    if run.exports.is_dir():
        from fastft.exports.record import read_exports  # numpy

        kinds += [each.kind for each in read_exports(run.exports).artefacts]
    return tuple(dict.fromkeys(kinds))
