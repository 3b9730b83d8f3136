"""Runs beside each other: on the terminal, as a page, and as JSON."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.recipe.reference import toml
from fastft.report.answers import answers_section, cut
from fastft.report.charts import Line, Point, line_chart, smoothed
from fastft.report.figures import METHODS, change_of, value_of, verdict_of
from fastft.report.html import Markup, element, joined, key, table
from fastft.report.page import POLICY
from fastft.report.result import STYLES, add_measure_columns, add_measure_rows
from fastft.report.style import STYLE
from fastft.report.units import duration, size, sparkline
from fastft.runs.comparison import Comparison, Pair, RunRead
from fastft.runs.metrics import History

CURVES = ("one", "two", "three", "four", "five", "six")
# Letters of a value on the terminal.
SHORT = 40
MANY = (
    "Each interval stands alone: the best of several runs on the same rows looks better than it is. Keep rows aside"
    " that none of them was chosen by."
)


def print_comparison(console: Console, made: Comparison, price: float | None) -> None:
    """The verdict, what differs, what each run took, and the measures of each pair."""
    console.print(
        Text(made.verdict, style=STYLES[made.pairs[0].word] if len(made.pairs) == 1 else "bold"), soft_wrap=True
    )
    if len(made.pairs) > 1:
        for pair in made.pairs:
            console.print(Text(str(pair), style=STYLES[pair.word]), soft_wrap=True)
        console.print(Text(MANY, style="dim"), soft_wrap=True)
    rows = _runs(made, price)
    rows["loss"] = tuple(sparkline([step.loss for step in run.history.steps], 16) for run in made.runs)
    console.print(_grid("", made, rows))
    for title, values in _differences(made).items():
        if values:
            console.print(
                _grid(title, made, {name: tuple(cut(text, SHORT) for text in row) for name, row in values.items()})
            )
    for pair in made.pairs:
        if pair.measures:
            title = f"\n{pair.other.letter} beside {pair.first.letter}, on the same held-out rows"
            shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
            add_measure_columns(shown, pair.first.letter, pair.other.letter)
            add_measure_rows(shown, pair.measures)
            console.print(shown)


def comparison_page(made: Comparison, price: float | None) -> str:
    """The same as one HTML file that loads nothing, with the curves over trained tokens."""
    word = made.pairs[0].word.replace(" ", "-") if len(made.pairs) == 1 else "running"
    head = [element("h1", f"{made.verdict}.", class_=f"verdict {word}")]
    if len(made.pairs) > 1:
        head += [element("p", f"{pair}.") for pair in made.pairs] + [element("p", MANY, class_="soft")]
    title = " and ".join(run.path.resolve().name for run in made.runs)
    return whole_page(title, [*head, *comparison_sections(made, price)])


def comparison_sections(made: Comparison, price: float | None) -> list[Markup]:
    """What each run took, what differs, the curves, and each run beside the first."""
    head = ("", *(run.name for run in made.runs))
    parts = []
    rows = [(name, *values) for name, values in _runs(made, price).items()]
    parts.append(element("section", element("h2", "Runs"), table(head, rows)))
    for title, values in _differences(made).items():
        cells = [(key(name), *(element("code", cut(text)) for text in row)) for name, row in values.items()]
        content = table(head, cells) if cells else element("p", "Nothing.")
        parts.append(element("section", element("h2", title), content))
    parts.append(element("section", element("h2", "Curves"), _curves(made)))
    return parts + [_pair_section(pair) for pair in made.pairs]


def whole_page(title: str, parts: list[Markup]) -> str:
    """A page of these parts that loads nothing."""
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", f"{title}: fastft"),
        element("style", Markup(STYLE)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *parts), lang='en')}\n"


def as_json(made: Comparison, price: float | None) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "verdict": made.verdict,
        "runs": [
            {
                "letter": run.letter,
                "path": str(run.path),
                "state": run.state,
                "eval_loss": None if run.result is None else _finite(run.result.eval_loss.after),
                "exact_match": None if not (run.result and run.result.exact_match) else run.result.exact_match.after,
                "tokens": run.history.totals.tokens,
                "train_seconds": round(run.history.totals.seconds, 1),
                "total_seconds": None if run.result is None else run.result.total_seconds,
                "peak_memory_bytes": None if run.result is None else run.result.peak_memory_bytes,
                "cost": _cost(run, price),
            }
            for run in made.runs
        ],
        "settings": made.settings,
        "surroundings": made.surroundings,
        "pairs": [
            {
                "first": pair.first.letter,
                "other": pair.other.letter,
                "word": pair.word,
                "sentence": str(pair),
                "measures": [
                    {
                        "name": one.measure.name,
                        "first": None if one.before is None else _finite(one.before),
                        "other": _finite(one.after),
                        "low": None if one.interval is None else _finite(one.interval.low),
                        "high": None if one.interval is None else _finite(one.interval.high),
                        "rows": one.rows,
                        "word": one.word,
                    }
                    for one in pair.measures
                ],
            }
            for pair in made.pairs
        ],
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _grid(title: str, made: Comparison, rows: Mapping[str, tuple[str, ...]]) -> Table:
    grid = Table(
        title=f"\n{title}" if title else None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    grid.add_column("")
    for run in made.runs:
        grid.add_column(run.name, overflow="fold")
    for name, values in rows.items():
        grid.add_row(Text(name), *(Text(value) for value in values))
    return grid


def _runs(made: Comparison, price: float | None) -> dict[str, tuple[str, ...]]:
    """What each run came to and took; only rows that a run has."""

    def of(show: Callable[[RunRead], str]) -> tuple[str, ...]:
        return tuple(show(run) for run in made.runs)

    rows = {
        "state": of(lambda run: run.state),
        "held-out loss": of(_held_out),
        "exact match": of(_match),
        "training loss, end": of(_training_loss),
        "optimizer steps": of(lambda run: f"{run.history.steps[-1].step:,}" if run.history.steps else "0"),
        "trained tokens": of(lambda run: f"{run.history.totals.tokens:,}"),
        "training": of(lambda run: duration(run.history.totals.seconds)),
        "speed": of(_speed),
        "whole run": of(lambda run: "" if run.result is None else duration(run.result.total_seconds)),
        "peak memory": of(_memory),
        "trained weights": of(lambda run: "" if run.result is None else f"{run.result.trained_weights:,}"),
        "cost": of(lambda run: "" if (cost := _cost(run, price)) is None else f"{cost:.2f}"),
    }
    return {name: values for name, values in rows.items() if any(values)}


def _held_out(run: RunRead) -> str:
    if run.result is not None:
        return "" if run.result.eval_loss.after is None else f"{run.result.eval_loss.after:.4f}"
    losses = [each.loss for each in run.history.evaluations if each.loss is not None]
    return f"{losses[-1]:.4f} so far" if losses else ""


def _match(run: RunRead) -> str:
    match = None if run.result is None else run.result.exact_match
    return "" if match is None else f"{match.after} of {match.rows}"


def _training_loss(run: RunRead) -> str:
    """The running mean at the last step, as the curve shows it."""
    curve = smoothed([(step.step, step.loss) for step in run.history.steps])
    return f"{curve[-1][1]:.4f}" if curve else ""


def _speed(run: RunRead) -> str:
    totals = run.history.totals
    return f"{totals.tokens / totals.seconds:,.0f} tokens/s" if totals.seconds else ""


def _memory(run: RunRead) -> str:
    steps = run.history.steps
    peak = run.result.peak_memory_bytes if run.result else max((step.memory_bytes for step in steps), default=0)
    return size(peak) if peak else ""


def _cost(run: RunRead, price: float | None) -> float | None:
    return None if price is None or run.result is None else price * run.result.total_seconds / 3600


def _differences(made: Comparison) -> dict[str, dict[str, tuple[str, ...]]]:
    settings = {name: tuple(toml(value) for value in values) for name, values in made.settings.items()}
    others = {
        name: tuple("none" if value is None else f"{value}" for value in row) for name, row in made.surroundings.items()
    }
    return {"Settings that differ": settings, "What else differs": others}


def _curves(made: Comparison) -> Markup:
    """Training and held-out loss of all runs over trained tokens."""
    training = [
        Line(run.letter, smoothed(_over_tokens(run.history)), style)
        for run, style in zip(made.runs, CURVES, strict=False)
    ]
    held_out = [
        Line(run.letter, _evaluations(run.history), style, dots=True)
        for run, style in zip(made.runs, CURVES, strict=False)
    ]
    x, y = "trained tokens", "loss (nats a token)"
    charts = {
        "training loss, running mean": (
            training,
            "Over tokens, not steps, so that runs of other batch sizes compare.",
        ),
        "held-out loss": (held_out, "Only runs with the same held-out rows and tokenizer have comparable losses."),
    }
    made_charts = [
        element("figure", element("h3", title), line_chart(title, x, y, lines), element("figcaption", meaning))
        for title, (lines, meaning) in charts.items()
        if any(line.points for line in lines)
    ]
    return element("div", *made_charts, class_="charts") if made_charts else element("p", "No step is logged yet.")


def _over_tokens(history: History) -> list[Point]:
    sums = itertools.accumulate(step.tokens for step in history.steps)
    return [(float(tokens), step.loss) for tokens, step in zip(sums, history.steps, strict=True)]


def _evaluations(history: History) -> list[Point]:
    """Each held-out loss at the tokens that were trained before it."""
    points = []
    for each in history.evaluations:
        if each.loss is not None:
            points.append((float(sum(step.tokens for step in history.steps if step.step <= each.step)), each.loss))
    return points


def _pair_section(pair: Pair) -> Markup:
    title = element("h2", f"{pair.other.name} beside {pair.first.name}")
    if pair.as_result is None:
        return element("section", title, element("p", f"{pair}."))
    rows = [
        (one.measure.title, value_of(one, one.before), value_of(one, one.after), change_of(one), verdict_of(one))
        for one in pair.measures
    ]
    head = ("", pair.first.letter, pair.other.letter, "change, 95 % interval", "")
    note = f"Intervals are paired: both models on the same held-out rows (for the loss, micro-batches). {METHODS}"
    parts = [table(head, rows, frozenset({1, 2, 3})), element("p", note, class_="soft")]
    if pair.as_result.exact_match is not None:
        by = (f"by {pair.first.letter}", f"by {pair.other.letter}")
        parts += [element("h3", "Answers"), answers_section(pair.as_result.exact_match, by)]
    return element("section", title, joined(*parts))
