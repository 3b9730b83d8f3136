"""Where words go in a notebook, whose standard streams are objects without a file descriptor."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fastft.console import library_output_to, private_console


@contextlib.contextmanager
def notebook() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """(standard output, standard error) of a cell. No fixture: pytest sets its own streams after those ran."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        yield out, err


def test_progress_reaches_the_standard_error_of_a_notebook(tmp_path: Path) -> None:
    with notebook() as (out, err), private_console() as console, library_output_to(tmp_path / "log.txt"):
        console.print("step 1")

    assert (out.getvalue(), err.getvalue()) == ("", "step 1\n")


def test_what_libraries_print_in_a_notebook_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with notebook() as (out, err):
        with library_output_to(log):
            print("by print")
            print("to standard error", file=sys.stderr)
            logging.getLogger("library").warning("by logging")
            os.write(1, b"from C\n")
            subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
        print("after")

    assert (out.getvalue(), err.getvalue()) == ("after\n", "")
    said = ["by a child", "by logging", "by print", "from C", "to standard error"]
    assert sorted(log.read_text(encoding="utf-8").splitlines()) == said
