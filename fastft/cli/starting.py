"""Commands for the first hour: a recipe, its keys, the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastft.cli.app import app
from fastft.commands.options import AsJson, looked_up


@app.command()
def explain(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="A key (learning_rate, lora.r) or a section.")
    ] = None,
) -> None:
    """Explain what a recipe key does, and when it is too small or large."""
    from fastft.recipe.reference import explain as explain_key

    print(explain_key(key))


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the recipe.")] = "recipe",
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="A Hub id or a folder.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="Your rows: their columns give the format.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="For the forecast: a100-80gb, l4, cpu, ...")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="sft, classification or preference; else as the rows.")
    ] = None,
) -> None:
    """Write a commented starter recipe, for your rows or with a few of its own."""
    from fastft.commands.init import init_in_terminal

    init_in_terminal(name, model, data, device, task)


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="YAML, a notebook, a program, a command line; -: standard input."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the recipe here.", callback=looked_up)
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out what a recipe cannot say, as comments.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a recipe of a file of Axolotl, LLaMA-Factory, TRL, ms-swift or Unsloth, or of a command line."""
    from fastft.commands.convert import convert_in_terminal

    convert_in_terminal(file, out, partial=partial, as_json=as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors that complete it."""
    from fastft.recipe.reference import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@app.command()
def doctor(
    as_json: AsJson = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train, resume and export a tiny model too: a minute.")
    ] = False,
) -> None:
    """Check versions, device and disk, and print the commands that fix them."""
    from fastft.commands.doctor import doctor_in_terminal

    raise typer.Exit(doctor_in_terminal(train=train, as_json=as_json))
