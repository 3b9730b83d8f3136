"""The command line: options and help of each command, and one call, imported when the command runs."""

from __future__ import annotations

import itertools
import sys

# In the order of --help: importing a module adds its commands.
from fastft.cli import training, recipes, weights, results, starting  # isort: skip
from fastft.cli.app import app
from fastft.commands.failure import reported
from fastft.console import show_plain_signs

__all__ = ["app", "main", "recipes", "results", "starting", "training", "weights"]


def _with_resume_value(arguments: list[str]) -> list[str]:
    """The arguments, with training.NEWEST after a `--resume` that names no folder: Typer knows no optional values."""
    given: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        given.append(argument)
        if argument == "--resume" and (following is None or following.startswith("-") or following.endswith(".toml")):
            given.append(training.NEWEST)
    return given


def _with_verbosity_first(arguments: list[str]) -> list[str]:
    """The arguments, with --quiet and --verbose in front of the command, whose options they are."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spoken = [argument for argument in arguments[:end] if argument in ("--quiet", "--verbose")]
    rest = [argument for argument in arguments[:end] if argument not in ("--quiet", "--verbose")]
    return [*dict.fromkeys(spoken), *rest, *arguments[end:]]


def main() -> None:
    """Run the command line. Exit codes: docs/runs.md."""
    show_plain_signs()
    with reported():
        arguments = _with_verbosity_first(_with_resume_value(sys.argv[1:]))
        sys.exit(app(arguments, prog_name="fastft", standalone_mode=False) or 0)
