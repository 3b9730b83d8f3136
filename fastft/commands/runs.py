"""`fastft runs`: the runs in a folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.errors import Problem, UsageError, Where
from fastft.report.units import duration, size
from fastft.runs.listing import Listed, list_runs


def runs_in_terminal(folder: Path, *, as_json: bool) -> None:
    """Print the runs in `folder`, the oldest first.

    Raises:
        UsageError: there is no such folder.
        MachineError: a record of a run is damaged.
    """
    if not folder.is_dir():
        raise UsageError(Problem(Where(str(folder)), "", "there is no such folder", "name the folder of your runs"))
    runs = list_runs(folder)
    if as_json:
        print(json.dumps([dataclasses.asdict(run) for run in runs], indent=2, ensure_ascii=False))
    elif not runs:
        print(f"no runs in {folder}")
    else:
        Console().print(_table(runs))


def _table(runs: list[Listed]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("run", "state"):
        table.add_column(name, overflow="fold")
    for name in ("steps", "loss before", "after", "training", "size"):
        table.add_column(name, justify="right")
    table.add_column("exports", overflow="fold")
    for run in runs:
        steps = f"{run.steps}" if run.total_steps in (None, run.steps) else f"{run.steps} of {run.total_steps}"
        losses = ("" if loss is None else f"{loss:.4f}" for loss in (run.loss_before, run.loss_after))
        cells = (steps, *losses, duration(run.seconds), size(run.size_bytes), ", ".join(run.exports))
        table.add_row(Text(run.name), run.state, *cells)
    return table
