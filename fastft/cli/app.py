"""The program itself: what stands before a command."""

from __future__ import annotations

from typing import Annotated

import typer

from fastft import __version__
from fastft.console import set_verbosity

app = typer.Typer(
    help="Fine-tune language models fast, from one TOML recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _take_local_rank(rank: int | None) -> None:
    if rank is not None:
        from fastft.probe.world import take_local_rank

        take_local_rank(rank)


# deepspeed and torch.distributed.launch write it in front of a program's arguments, people behind them.
LocalRank = Annotated[
    int | None, typer.Option("--local_rank", "--local-rank", hidden=True, min=0, callback=_take_local_rank)
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastft {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[  # noqa: ARG001 -- its callback takes it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Results, warnings and errors alone; also behind a command.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Errors with their traceback; also behind a command.")
    ] = False,
    local_rank: LocalRank = None,  # noqa: ARG001 -- its callback takes it
) -> None:
    """Fine-tune language models fast, from one TOML recipe."""
    set_verbosity(quiet=quiet, verbose=verbose)
