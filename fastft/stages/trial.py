"""One run of a sweep as a process of its own, which ends when the sweep ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fastft.stages.stopping import SIGNALS

# Linux: the signal that a process gets when its parent dies (prctl(2)).
PR_SET_PDEATHSIG = 1


def run_trial(recipe: Path, overrides: Sequence[str], folder: Path, until: float) -> tuple[int, bool]:
    """(exit code of `fastft run`, whether a signal asked to stop), with its progress on standard error.

    A process of its own has its memory and its engine to itself. Signals are passed on to it.
    """
    command = [sys.executable, "-m", "fastft", "run", str(recipe), "--runs-dir", str(folder), "--resume"]
    command += [part for text in overrides for part in ("--set", text)]
    command += ["--until", f"{until:g}"] if until < 1 else []
    asked = False
    with contextlib.ExitStack() as stack:
        # A session of its own: Ctrl-C of a terminal reaches it through here alone, and once.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent
        )

        def forward(number: int, _: object) -> None:
            nonlocal asked
            asked = True
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

        for number in SIGNALS:
            stack.callback(signal.signal, number, signal.signal(number, forward))
        return process.wait(), asked


def _end_with_parent() -> None:
    """In the new process: ask for SIGTERM when the sweep is killed, so that its run saves and does not go on alone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
