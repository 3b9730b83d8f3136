"""The folder of what fastft can make again."""

from __future__ import annotations

import os
from pathlib import Path

from fastft.errors import MachineError, Problem, Where

SERVED = "served"
"""The folder in it of GGUF files that `fastft serve` exports."""


def cache_folder() -> Path:
    """Where fastft keeps what it can make again: converted models, GGUF files, Unsloth's compiled kernels, verdicts.

    Raises:
        MachineError: this user has no home folder, as in a container with a number for a user.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "fastft"
    except RuntimeError:
        wrong, instead = "this user has no home folder", "set HOME or XDG_CACHE_HOME to a folder that you may write to"
        raise MachineError(Problem(Where("HOME"), "", wrong, instead)) from None
