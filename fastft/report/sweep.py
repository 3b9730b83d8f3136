"""A sweep on the terminal, as a page, and as JSON: its runs by held-out loss, and how sure the best one is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.report.charts import Line, line_chart
from fastft.report.comparison import CURVES, MANY, comparison_sections, whole_page
from fastft.report.html import Markup, element, key, table
from fastft.report.units import duration
from fastft.runs.comparison import MOST_RUNS, Comparison, compare_runs
from fastft.runs.history import read_history
from fastft.runs.sweep import Trial, ranked

FILE = "sweep.html"
HEADINGS = ("run", "held-out loss", "exact match", "state", "training")


def verdict_of_sweep(trials: Sequence[Trial], made: Comparison | None) -> str:
    """The best of the finished runs, and whether it is surely better than the second."""
    best = best_of(trials)
    if best is None:
        return f"None of {len(trials)} runs has finished"
    sentence = f"Best of {len(trials)} runs: {best.name}, with a held-out loss of {best.loss:.4f}"
    if made is None or made.pairs[0].as_result is None:
        return sentence
    beside = str(made.pairs[0])
    for run in made.runs:  # by its folder alone: the letters of the page are those of all runs
        beside = beside.replace(run.name, run.path.name)
    return f"{sentence}. {beside[0].upper()}{beside[1:]}"


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The finished run with the lowest held-out loss."""
    finished = [trial for trial in ranked(trials) if trial.state == "finished" and trial.loss is not None]
    return next((trial for trial in finished if trial.loss is not None and math.isfinite(trial.loss)), None)


def best_beside_second(trials: Sequence[Trial]) -> Comparison | None:
    """The second best finished run, and the best one beside it; None with fewer than two."""
    finished = [trial.run.path for trial in ranked(trials) if trial.state == "finished" and trial.run is not None]
    return compare_runs([finished[1], finished[0]]) if len(finished) > 1 else None


def print_sweep(console: Console, trials: Sequence[Trial], made: Comparison | None) -> None:
    """The verdict and a line a run, the best first."""
    console.print(Text(verdict_of_sweep(trials, made), style="bold"), soft_wrap=True)
    if made is not None:
        console.print(Text(MANY, style="dim"), soft_wrap=True)
    shown = Table(box=None, pad_edge=False)
    for name in ("", *_keys(trials), *HEADINGS):
        shown.add_column(
            name,
            overflow="fold",
            no_wrap=name in ("run", "training"),
            justify="left" if name in ("", "run", "state") else "right",
        )
    for place, trial in enumerate(ranked(trials), start=1):
        shown.add_row(f"{place}", *map(Text, [*_values(trial, _keys(trials)), *_cells(trial)]))
    console.print(shown)


def sweep_page(folder: Path, trials: Sequence[Trial]) -> str:
    """One page about all runs, of which the best ones are compared in full.

    Raises:
        MachineError: a record of a run is damaged.
    """
    made, keys = best_beside_second(trials), _keys(trials)
    rows = [(*_values(trial, keys), *_cells(trial)) for trial in ranked(trials)]
    head = (*(key(name) for name in keys), *HEADINGS)
    numbers = frozenset({len(keys) + 1, len(keys) + 2, len(keys) + 4})
    style = "running" if best_of(trials) is None else "better"
    parts = [element("h1", f"{verdict_of_sweep(trials, made)}.", class_=f"verdict {style}")]
    parts += [element("p", MANY, class_="soft")] if made is not None else []
    parts.append(element("section", element("h2", "Runs, the best first"), table(head, rows, numbers)))
    parts.append(element("section", element("h2", "Held-out loss"), _curves(trials)))
    for name in keys if made is not None else ():
        parts.append(_by_value(trials, name))
    compared = [trial.run.path for trial in ranked(trials) if trial.run is not None][:MOST_RUNS]
    if len(compared) > 1:
        parts += comparison_sections(compare_runs(compared), None)
    return whole_page(folder.resolve().name, parts)


def as_json(folder: Path, trials: Sequence[Trial], made: Comparison | None, best: Path | None) -> dict[str, Any]:
    """The same as JSON, the best run first; `best`: its recipe."""
    return {
        "sweep": str(folder),
        "verdict": verdict_of_sweep(trials, made),
        "best_recipe": None if best is None else str(best),
        "runs": [
            {
                "overrides": list(trial.overrides),
                "run": None if trial.run is None else str(trial.run.path),
                "state": trial.state,
                "eval_loss": trial.loss if trial.loss is not None and math.isfinite(trial.loss) else None,
                "share_of_steps": round(trial.share, 4),
                "why": trial.why,
            }
            for trial in ranked(trials)
        ],
    }


def _keys(trials: Sequence[Trial]) -> list[str]:
    """The keys that have several values."""
    pairs = [dict(text.split("=", 1) for text in trial.overrides) for trial in trials]
    return [name for name in pairs[0] if len({each[name] for each in pairs}) > 1]


def _values(trial: Trial, keys: Sequence[str]) -> tuple[str, ...]:
    pairs = dict(text.split("=", 1) for text in trial.overrides)
    return tuple(pairs[name] for name in keys)


def _cells(trial: Trial) -> tuple[str, ...]:
    """Of the run: its folder, loss, exact match, state and time."""
    if trial.run is None:
        return ("", "", "", "to come", "")
    result, history = trial.run.result, read_history(trial.run)
    match = None if result is None else result.exact_match
    state = f"{trial.state}" if trial.state == "finished" else f"{trial.state} at {trial.share:.0%}"
    return (
        trial.run.path.name,
        "" if trial.loss is None else f"{trial.loss:.4f}",
        "" if match is None else f"{match.after} of {match.rows}",
        f"{state}: {trial.why}" if trial.why else state,
        duration(history.totals.seconds),
    )


def _curves(trials: Sequence[Trial]) -> Markup:
    """Held-out loss over the share of the steps, of the best runs."""
    shown = [trial for trial in ranked(trials) if trial.losses][: len(CURVES)]
    lines = [
        Line(
            trial.run.path.name if trial.run else "", [(100 * share, loss) for share, loss in trial.losses], style, True
        )
        for trial, style in zip(shown, CURVES, strict=False)
    ]
    if not any(len(line.points) > 1 for line in lines):
        return element("p", "No run has been evaluated on its way: --stop-early or train.eval_strategy does that.")
    title = "held-out loss"
    chart = line_chart(title, "optimizer steps done (%)", "loss (nats a token)", lines)
    meaning = f"The {len(shown)} best of {len(trials)} runs." if len(trials) > len(shown) else "All runs."
    return element("div", element("figure", chart, element("figcaption", meaning)), class_="charts")


def _order(value: str) -> tuple[float, str]:
    """Numbers by their size, then all else."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


def _by_value(trials: Sequence[Trial], name: str) -> Markup:
    """The lowest and the mean held-out loss of the runs with each value of a key."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.loss is not None]
    by_value = sorted(((_values(trial, [name])[0], trial.loss) for trial in finished), key=lambda pair: _order(pair[0]))
    rows = []
    for value, group in itertools.groupby(by_value, key=lambda pair: pair[0]):
        losses = [loss for _, loss in group if loss is not None]
        rows.append((value, f"{len(losses)}", f"{min(losses):.4f}", f"{sum(losses) / len(losses):.4f}"))
    head = ("value", "finished runs", "lowest held-out loss", "mean")
    return element("section", element("h2", name), table(head, rows, frozenset({1, 2, 3})))
