"""How a command that failed ends: its problems on standard error, and in JSON where that was asked for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from fastft.commands.usage import usage_hint
from fastft.console import is_verbose, redact
from fastft.errors import FastftError, MachineError, Problem, Where
from fastft.files.cache import cache_folder
from fastft.probe.software import INSTALL

# The base of all usage errors: from click, or in later versions from a copy of it inside typer.
CLICK_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Ends the process with the exit code and the message of what is raised inside; a bug keeps its traceback."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except typer.Abort:
        raise SystemExit(130) from None
    except CLICK_ERROR as error:
        report_usage(error)
        raise SystemExit(error.exit_code) from None
    except FastftError as error:
        if is_verbose():
            traceback.print_exc()
        report_failure(error.problems, error.exit_code)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:  # before a command began
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader has gone, as `| head` does
        discard_output()
        raise SystemExit(1) from None
    except (OSError, ImportError) as error:
        discard_output()
        if is_verbose():
            traceback.print_exc()
        report_failure([explain_error(error)], MachineError.exit_code)
        raise SystemExit(MachineError.exit_code) from None


def report_usage(error: Any) -> None:
    """A usage error of click on standard error, with what was probably meant; with --json also as JSON."""
    hint = usage_hint(error, sys.argv[1:])
    with contextlib.redirect_stderr(io.StringIO()) as said:
        error.show()
    print(redact(said.getvalue()), end="", file=sys.stderr)  # it repeats what was typed
    if hint:
        print(f"write: {redact(hint)}", file=sys.stderr)
    command = error.ctx.command_path if error.ctx else "fastft"
    if error.message:  # not where the help is shown because nothing was typed
        _print_json([Problem(Where(command), "", error.format_message(), hint or f"see {command} -h")], error.exit_code)


def report_failure(problems: Sequence[Problem], exit_code: int) -> None:
    """Each problem on standard error; with --json also on standard output, as docs/runs.md says."""
    _print_json(problems, exit_code)
    for problem in problems:
        print(problem, file=sys.stderr)


def _print_json(problems: Sequence[Problem], exit_code: int) -> None:
    if "--json" in sys.argv[1:]:
        failure = {"exit_code": exit_code, "problems": [problem.as_json() for problem in problems]}
        print(json.dumps(failure, indent=2), flush=True)


def discard_output() -> None:
    """Send what is still to be written to standard output nowhere: Python would fail on it again at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def explain_error(error: OSError | ImportError) -> Problem:
    """An error of the machine in one line; its traceback goes to a log in fastft's cache."""
    text = redact("".join(traceback.format_exception(error)))
    try:
        log = cache_folder() / "error.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8")
        instead = f"the traceback is in {log}"
    except (OSError, MachineError):
        instead = "set XDG_CACHE_HOME to a folder that you may write to"
    if isinstance(error, ImportError):
        return Problem(Where(error.name or "python"), "", f"cannot be imported: {error}", f"{INSTALL}; {instead}")
    where = error.filename if isinstance(error.filename, str) else "standard output"
    return Problem(Where(where), "", f"failed: {error.strerror or error}", instead)
