"""What a system must have for files that one process alone may write."""

from __future__ import annotations

import platform

from fastft.errors import MachineError, Problem, Where


def require_locks(command: str) -> None:
    """Stop a command that writes a run or weights on a system without file locks.

    Raises:
        MachineError: this is Windows, whose Python has no `fcntl`.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        wrong, instead = "this system has no file locks of POSIX, which it needs", "use Linux, macOS or WSL 2"
        raise MachineError(Problem(Where(f"{command} on {platform.system()}"), "", wrong, instead)) from None
