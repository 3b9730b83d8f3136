"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fastft.errors import Problem, UsageError, Where

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a .toml file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set train.learning_rate=1e-4")
]


Place = TypeVar("Place", Path, str, None)


def looked_up(place: Place) -> Place:
    """The same path; raises UsageError for one that the system refuses to look up, such as a name of 300 letters."""
    if place is not None:
        from fastft.recipe.paths import refusal

        wrong = refusal(Path(), str(place))
        if wrong is not None:
            raise UsageError(Problem(Where(str(place)[:100]), "", f"cannot be looked up: {wrong}", "correct the path"))
    return place


RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="DIR", help="Where run folders are made.", callback=looked_up)
]
PricePerHour = Annotated[
    float | None, typer.Option("--price-per-hour", min=0, help="The price of an hour, of one device.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run.", callback=looked_up, show_default=False)
]
WeightsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="A run, an adapter, a model folder or a .gguf file.",
        callback=looked_up,
        show_default=False,
    ),
]
ContextTokens = Annotated[
    int | None, typer.Option("--context-tokens", min=64, help="The longest conversation of a GGUF file; default: 4096.")
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="MODEL", help="The 16-bit base of an adapter: a folder or a Hub id.", callback=looked_up
    ),
]
