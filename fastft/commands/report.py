"""`fastft report`: the page of a run, from its records."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.files.atomic import write_text
from fastft.report.page import write_page
from fastft.report.picture import picture
from fastft.runs.directory import RunDir


def report_in_terminal(folder: Path, out: Path | None, svg: Path | None, *, open_it: bool) -> None:
    """Write the page of the run in `folder`, and a picture to `svg`, and print their paths.

    Raises:
        UsageError: `folder` is no run.
        MachineError: a record of the run is damaged, or the page cannot be written or shown.
    """
    run = RunDir(folder)
    if not run.recipe.is_file():
        raise UsageError(Problem(Where(str(folder)), "", "is no folder of a run", "name one; fastft runs lists them"))
    try:
        path = write_page(run, out)
        if svg is not None:
            write_text(svg, picture(run))
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        where = Where(str(error.filename or out or folder))
        raise MachineError(Problem(where, "", wrong, "name a file that you may write")) from error
    print(path)
    if svg is not None:
        print(svg)
    if open_it and not webbrowser.open(path.resolve().as_uri()):
        wrong, instead = "no browser was found", "open the file yourself, or set BROWSER"
        raise MachineError(Problem(Where(str(path)), "--open", wrong, instead))
