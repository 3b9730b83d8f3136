"""Commands that read a recipe and its rows, and train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastft.cli.app import app
from fastft.commands.options import AsJson, Overrides, PricePerHour, RecipePath, RunsDir


@app.command()
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="One or more recipes.", show_default=False)],
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Render and tokenize every row too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find every problem that shows without a model or a GPU."""
    from fastft.commands.check import check_in_terminal

    raise typer.Exit(check_in_terminal(recipes, overrides or [], rows=data, as_json=as_json))


@app.command()
def preview(
    recipe: RecipePath,
    count: Annotated[int, typer.Option("-n", min=1, help="How many rows, from the first on.")] = 3,
    row: Annotated[int | None, typer.Option("--row", min=1, help="One row, by its number in training.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print rows as they are trained, and which tokens carry loss."""
    from fastft.commands.preview import preview_in_terminal

    preview_in_terminal(recipe, overrides or [], count=count, row=row, as_json=as_json)


@app.command()
def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    no_personal: Annotated[bool, typer.Option("--no-personal", help="Do not look for personal data.")] = False,
) -> None:
    """Report repeats, leaks, contradictions, imbalance and personal data of the rows, and what they hold."""
    from fastft.commands.data import data_in_terminal

    data_in_terminal(recipe, overrides or [], as_json=as_json, personal=not no_personal)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Forecast for a100-40gb, h100, l4, t4, cpu, ...")
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Its memory: 24GB.")] = None,
    price_per_hour: PricePerHour = None,
    devices: Annotated[int | None, typer.Option("--devices", min=1, max=1024, help="GPUs of each host.")] = None,
    hosts: Annotated[int | None, typer.Option("--hosts", min=1, max=1024, help="How many hosts.")] = None,
    link: Annotated[str | None, typer.Option("--link", metavar="NAMES", help="pcie4,25gbit, 8x400gbit, ...")] = None,
    engine: Annotated[str | None, typer.Option("--engine", metavar="NAME", help="ddp, fsdp2, zero1/2/3.")] = None,
    what_if: Annotated[
        str | None, typer.Option("--what-if", metavar="KEY=V1,V2", help="One row for each value of a key.")
    ] = None,
    calls: Annotated[bool, typer.Option("--calls", help="Show the upstream calls too.")] = False,
) -> None:
    """Forecast steps, padding, memory, time and disk, without a GPU."""
    from fastft.commands.plan import Question, plan_in_terminal

    question = Question(runs_dir, device, memory, price_per_hour, devices, hosts, link, engine)
    plan_in_terminal(recipe, overrides or [], question, what_if=what_if, calls=calls, as_json=as_json)
