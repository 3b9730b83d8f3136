"""Kills at the n-th moment at which a process changes the disk: files opened to be written, flushes, renames."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


class Points:
    """Counts the changes of the disk in this process, and kills it just before the one of number `kill_at`."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._flush = os.fsync

    def install(self) -> None:
        """Count from now on; for the rest of the life of this process."""
        sys.addaudithook(self._heard)
        os.fsync = self._flushed  # type: ignore[assignment]

    def write_count(self, path: Path) -> None:
        path.write_text(str(self.count), encoding="utf-8")

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and flags & WRITES and not str(path).startswith("/dev"):
                self._pass()
        elif event in CHANGES:
            self._pass()

    def _flushed(self, descriptor: int) -> None:
        self._pass()
        self._flush(descriptor)

    def _pass(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def die_at_byte(size: int) -> None:
    """From now on the kernel ends this process where a file, whichever library writes it, would grow beyond `size`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
