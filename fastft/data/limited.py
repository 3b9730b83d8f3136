"""A task of a foreign file in a process of its own, with limits on its time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

SECONDS, MEMORY_BYTES = 2, 512 * 1024**2
Outcome = Literal["done", "time", "memory"]

_ROOT = Path(__file__).parents[2]
# -I: neither the folder of the user nor the environment can bring in other modules.
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from fastft.data.limited import child
from {} import {} as task
child(task)
"""
_OUT_OF_MEMORY = 90


def run_limited(task: Callable[[Any], None], value: object) -> Outcome:
    """How `task(value)` ends in a new process: it is done, or it needed more than SECONDS of CPU or MEMORY_BYTES.

    `task` is a function of a module of fastft, `value` is JSON. An error of the task counts as done.
    """
    command = [sys.executable, "-I", "-c", _PROGRAM.format(task.__module__, task.__name__), str(_ROOT)]
    try:
        # Far longer on the clock: starting Python takes 10 s on a machine with 25 other processes on two cores.
        done = subprocess.run(
            command, input=json.dumps(value), text=True, capture_output=True, timeout=30 * SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "time"
    if done.returncode < 0 and done.returncode == -signal.SIGPROF:  # Windows has neither
        return "time"
    # A library that gets no memory in C ends by a signal.
    return "memory" if done.returncode < 0 or done.returncode == _OUT_OF_MEMORY else "done"


def child(task: Callable[[Any], None]) -> None:
    """Run the task that `run_limited` was given; in its new process. Windows has no limits but the clock."""
    value = json.load(sys.stdin)
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        # Its signal ends the process, in the middle of a C function too; RLIMIT_CPU counts in whole seconds.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        task(value)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except Exception:
        os._exit(0)
    os._exit(0)
