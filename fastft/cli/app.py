"""The program itself: what stands before a command."""

from __future__ import annotations

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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    local_rank: LocalRank = None,
) -> None:
    """Fine-tune language models fast, from one TOML recipe."""
