"""Commands that show what runs gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastft.cli.app import app
from fastft.commands.options import AsJson, PricePerHour, RunFolder, looked_up


@app.command()
def report(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Default: report.html in the run's folder.", callback=looked_up),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Write a picture for a README too.", callback=looked_up),
    ] = None,
) -> None:
    """Write the report page of a run: one HTML file that loads nothing."""
    from fastft.commands.report import report_in_terminal

    report_in_terminal(run, out, svg, open_it=open_it)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the runs.", callback=looked_up)] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: state, steps, held-out loss, time, size, exports."""
    from fastft.commands.runs import runs_in_terminal

    runs_in_terminal(folder, as_json=as_json)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The first is the one to beat.")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with curves too.", callback=looked_up)
    ] = None,
    price_per_hour: PricePerHour = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs on the same held-out rows: which is better and how sure that is, settings, speed, memory."""
    from fastft.commands.compare import compare_in_terminal

    compare_in_terminal([looked_up(folder) for folder in folders], html, price_per_hour, as_json=as_json)


@app.command()
def reproduce(
    run: RunFolder,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="In nats; default: 0 on a CPU, 0.01 elsewhere.")
    ] = None,
) -> None:
    """Run a finished run again with the same data, base and versions, and compare every loss."""
    from fastft.commands.reproduce import reproduce_in_terminal

    reproduce_in_terminal(run, tolerance)


@app.command()
def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Show where it is now, and end.")] = False,
) -> None:
    """Follow a running run from another terminal; end when it ends."""
    from fastft.commands.watch import watch_in_terminal

    watch_in_terminal(run, once=once)


@app.command()
def clean(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the runs.", callback=looked_up)] = Path(
        "runs"
    ),
    unused_days: Annotated[
        float, typer.Option("--unused-days", min=0, help="Caches that were not read for so many days.")
    ] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without a question.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove checkpoints of finished runs and stale caches, after showing what and how much."""
    from fastft.commands.clean import clean_in_terminal

    clean_in_terminal(folder, unused_days, yes=yes, as_json=as_json)
