"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastft.cli.app import LocalRank, app
from fastft.commands.options import AsJson, Overrides, RecipePath, RunsDir, looked_up
from fastft.console import is_quiet

# The value of `--resume` without a folder. No folder has an empty name.
NEWEST = ""


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[RUN]",
            help="Do not run a finished run again; RUN: continue this folder.",
            callback=looked_up,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new run, even where one did not finish.")] = False,
    accept_drift: Annotated[
        list[str] | None,
        typer.Option("--accept-drift", metavar="KEY", help="Continue although this changed: packages.torch, device."),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(
            "--until",
            metavar="SHARE",
            min=0.0001,
            max=1,
            help="Evaluate, save and stop after this share of the steps: 0.5.",
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure first what the recipe leaves open, once on this machine.")
    ] = False,
    as_json: AsJson = False,
    local_rank: LocalRank = None,  # noqa: ARG001 -- its callback takes it
) -> None:
    """Check, plan, load, train, evaluate and save; print what changed.

    A run of the same recipe that did not finish is continued.
    """
    from fastft.commands.run import run_in_terminal
    from fastft.stages.attempt import Start

    if tune:
        from fastft.commands.tune import tune_first

        tune_first(recipe, overrides or [])
    run = Path(resume) if resume not in (None, NEWEST) else None
    start = Start(resume is not None, fresh, run, tuple(accept_drift or ()), until=until)
    run_in_terminal(recipe, overrides or [], runs_dir, start, as_json=as_json)


@app.command()
def tune(
    recipe: RecipePath,
    overrides: Overrides = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="At most so much: 8GB.")] = None,
    learning_rate: Annotated[
        bool, typer.Option("--learning-rate", help="Find a learning rate instead, with a range test.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what the recipe leaves open with a few real steps; write the fastest set-up to RECIPE.tuned.toml."""
    if learning_rate:
        from fastft.commands.tune_rate import find_learning_rate_in_terminal

        find_learning_rate_in_terminal(recipe, overrides or [], as_json=as_json)
        return
    from fastft.commands.tune import tune_in_terminal

    tune_in_terminal(recipe, overrides or [], memory, as_json=as_json)


@app.command()
def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new run, even where one did not finish.")] = False,
    nproc: Annotated[
        int | None, typer.Option("--nproc", min=1, max=4096, help="Processes on this host; default: one a GPU.")
    ] = None,
    hostfile: Annotated[
        Path | None,
        typer.Option("--hostfile", metavar="FILE", help="Lines: node1 slots=8", callback=looked_up),
    ] = None,
    nnodes: Annotated[int | None, typer.Option("--nnodes", min=1, max=4096, help="How many hosts.")] = None,
    node_rank: Annotated[int | None, typer.Option("--node-rank", min=0, help="Which host this is, from 0.")] = None,
    master: Annotated[str | None, typer.Option("--master", metavar="ADDRESS[:PORT]", help="The first host.")] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="ddp, zero1, zero2, zero3 or FILE.json of DeepSpeed."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands alone.")] = False,
) -> None:
    """Run a recipe as several processes, on this host or on several.

    The batch of the recipe stays the same: each process takes its share.
    """
    from fastft.commands.launch import LaunchRequest, launch_in_terminal

    arguments = (*(("--runs-dir", str(runs_dir)) if runs_dir != Path("runs") else ()), *(("--fresh",) if fresh else ()))
    arguments += ("--quiet",) if is_quiet() else ()
    request = LaunchRequest(nproc, hostfile, nnodes, node_rank, master, engine, arguments)
    raise typer.Exit(launch_in_terminal(recipe, overrides or [], request, dry_run=dry_run))


@app.command()
def sweep(
    recipe: RecipePath,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=V1,V2",
            help="The values of a key, or a range to draw from: lora.r=8,16 or KEY=1e-5..1e-3",
        ),
    ],
    runs_dir: RunsDir = Path("runs"),
    max_runs: Annotated[
        int | None, typer.Option("--max-runs", metavar="N", min=1, help="N of the combinations, at random.")
    ] = None,
    stop_early: Annotated[
        bool,
        typer.Option("--stop-early", help="Only the better half by held-out loss goes on at 1/4 and 1/2 of the steps."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe with several values, in one folder; the same command continues.

    Ends with a page that compares the runs, and the best recipe as a file.
    """
    from fastft.commands.sweep import SweepRequest, sweep_in_terminal

    sweep_in_terminal(recipe, SweepRequest(tuple(overrides), max_runs, stop_early, runs_dir), as_json=as_json)
