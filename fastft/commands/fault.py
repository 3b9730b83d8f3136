"""An error of the machine that no command expected, in one line."""

from __future__ import annotations

import traceback

from fastft.console import redact
from fastft.errors import MachineError, Problem, Where
from fastft.files.cache import cache_folder
from fastft.probe.software import INSTALL


def explain_fault(error: OSError | ImportError) -> Problem:
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
