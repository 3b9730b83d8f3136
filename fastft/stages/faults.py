"""What the operating system refused while a run went on, in words that name the cause."""

from __future__ import annotations

import errno

from fastft.errors import MachineError, Problem, Where
from fastft.files.atomic import free_bytes
from fastft.report.units import size
from fastft.runs.directory import RunDir

CONTINUES = "then run the same command: it continues"


def explain(error: OSError, run: RunDir) -> MachineError:
    """The error of an attempt that ended with `error`."""
    where = Where(str(error.filename or run.path))
    if not run.recipe.is_file():
        problem = Problem(Where(str(run.path)), "", "was removed while the run went on", "start the run again")
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        wrong = f"the disk is full: {size(free_bytes(run.path))} are free"
        problem = Problem(where, "", wrong, f"free some space, {CONTINUES}")
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        wrong = f"cannot be written: {error.strerror}"
        problem = Problem(where, "", wrong, f"make the folder writable, {CONTINUES}")
    else:
        problem = Problem(where, "", f"failed: {error.strerror or error}", "see the log of this attempt")
    return MachineError(problem)
