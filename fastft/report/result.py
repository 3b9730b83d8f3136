"""The result of a finished run as a table: what changed, what it cost, where the weights are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fastft.report.classes import class_table, figure_rows
from fastft.report.figures import change_of, value_of, verdict_of
from fastft.report.units import duration, size
from fastft.runs.intervals import Word
from fastft.runs.measured import Compared, compared
from fastft.runs.result import Result, ShownAnswer
from fastft.runs.score import Score
from fastft.runs.verdict import judge

# Characters of an answer that the table shows; result.json has all.
SHOWN = 300
STYLES: dict[Word, str] = {"better": "bold green", "worse": "bold red", "cannot tell": "bold yellow"}


def print_result(console: Console, result: Result, run_dir: str) -> None:
    """Print the verdict, and the result as a table: figures before and after, one real answer, the folder."""
    verdict = judge(result)
    console.print(Text(str(verdict), style=STYLES[verdict.word]), soft_wrap=True)
    table = Table(title=run_dir, title_justify="left", title_style="bold", box=None, pad_edge=False)
    add_measure_columns(table, "before", "after")
    match = result.exact_match
    figures = compared(result)
    add_measure_rows(table, figures)
    if match is not None and all(each.measure.name != "exact_match" for each in figures):
        table.add_row("exact match", _share(match.before, match.rows), _share(match.after, match.rows))
    for row in figure_rows(result.classification) if result.classification is not None else ():
        table.add_row(*row)
    parts: list[Any] = [Text(), table]
    if result.classification is not None:
        parts += [Text(), class_table(result.classification.after)]
    parts += [Text(), _cost(result)]
    if match is not None:
        parts += [Text(), _example(match.example)]
    if result.general_missing:
        parts += [Text(), Text(f"general questions are not counted: {result.general_missing}", style="yellow")]
    if result.forecast:
        parts += [Text(), Text(f"forecast: {_forecast(result.forecast)}", style="dim")]
    parts += [Text(), Text(f"weights: {result.weights_folder}", style="green")]
    parts += [Text(f"{export.kind}: {export.path} ({size(export.bytes)})", style="green") for export in result.exports]
    console.print(Group(*parts))


def add_measure_columns(table: Table, before: str, after: str) -> None:
    """The columns of a table of measures, which fit 80 letters."""
    table.add_column("")
    table.add_column(before, justify="right", no_wrap=True)
    table.add_column(after, justify="right", style="bold", no_wrap=True)
    table.add_column("change (95 %)", no_wrap=True)
    table.add_column("", style="bold")


def add_measure_rows(table: Table, figures: Sequence[Compared]) -> None:
    """One row a measure: its values, its change with the interval, and what that says."""
    for each in figures:
        values = (value_of(each, each.before), value_of(each, each.after))
        table.add_row(each.measure.title, *values, change_of(each), verdict_of(each))


def _cost(result: Result) -> Table:
    """What the run took."""
    rate = result.train_tokens_seen / result.train_seconds if result.train_seconds else 0.0
    grid = Table.grid(padding=(0, 2))
    grid.add_row("training loss", _number(result.train_loss))
    grid.add_row("optimizer steps", f"{result.steps}")
    grid.add_row("training", f"{duration(result.train_seconds)}, {rate:.0f} tokens/s")
    grid.add_row("whole run", duration(result.total_seconds))
    grid.add_row("peak memory", size(result.peak_memory_bytes))
    grid.add_row("trained weights", f"{result.trained_weights:,} of {result.weights:,}")
    return grid


def _example(example: ShownAnswer) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    answers = {"before": example.before, "after": example.after, "reference": example.reference}
    for name, text in {"asked": example.question, **answers}.items():
        if text is not None:
            # Text, not markup: an answer may contain square brackets.
            grid.add_row(name, Text(text if len(text) <= SHOWN else text[:SHOWN] + " ..."))
    return grid


def _forecast(figures: dict[str, Score]) -> str:
    """How far off the plan was, figure by figure: `optimizer steps exact, peak memory +3 %`."""
    parts = []
    for name, figure in figures.items():
        error = figure.error
        words = name.removesuffix("_bytes").replace("train_seconds", "training time").replace("_", " ")
        parts.append(f"{words} {'unknown' if error is None else 'exact' if error == 0 else f'{100 * error:+.0f} %'}")
    return ", ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _share(count: int | None, rows: int) -> str:
    return "" if count is None else f"{count} of {rows} ({100 * count / rows:.0f} %)"
