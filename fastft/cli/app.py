"""The program itself: what stands before a command."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fastft import __version__

app = typer.Typer(
    help="Fine-tune language models fast, from one TOML recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastft {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[  # noqa: ARG001 -- its callback prints it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None,
) -> None:
    """Fine-tune language models fast, from one TOML recipe."""
    if local_rank is not None:  # deepspeed's launcher says it here too, in front of the command
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
