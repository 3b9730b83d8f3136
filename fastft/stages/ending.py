"""What an attempt leaves behind however it ends: its message, and the report of the run."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from fastft.errors import FastftError, Interrupted
from fastft.report.page import FILE, write_page
from fastft.runs.directory import RunDir
from fastft.runs.state import Ended, State, keep_end


@contextlib.contextmanager
def reported(run: RunDir, attempt: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Around an attempt: keep its message where it fails or stops, and write report.html at its end."""
    try:
        yield
    except FastftError as error:
        why = "; ".join(map(str, error.problems))
        stopped = isinstance(error, Interrupted)
        with contextlib.suppress(OSError):  # the message itself goes on to the user
            keep_end(attempt, Ended(stopped, why))
        _report(run, note, ("stopped" if stopped else "failed", why))
        raise
    _report(run, note, ("finished", ""))


def _report(run: RunDir, note: Callable[[str], None], state: tuple[State, str]) -> None:
    """Write the page; a lost page is no reason to lose a run, so that is only said."""
    if not run.recipe.is_file():  # the folder was removed while the run went on
        return
    try:
        write_page(run, state=state)
    except Exception as error:
        traceback.print_exc()  # to the log of the attempt
        note(f"{FILE} could not be written: {error}; fastft report {run.path} tries again")
