"""Commands of fastft in children of this process, which has imported everything that they need."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Of the clock: long, because other work may take the cores.
HANG_SECONDS = 400


@dataclass(frozen=True)
class Ended:
    """A process that ended: exit code (negative: a signal), what it printed, clock and CPU seconds."""

    code: int
    shown: str
    seconds: float
    cpu_seconds: float

    @property
    def is_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.shown

    @property
    def last_line(self) -> str:
        lines = [line for line in self.shown.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


class Child:
    """`fastft ARGUMENTS` in `cwd`; `before` runs in the child first, `after` at its end."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._log = cwd / ".shown"
        self._log.write_bytes(b"")
        self._begun = time.monotonic()
        self._ended: Ended | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(arguments, cwd, self._log, before, after)

    @property
    def shown(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs."""
        if self._ended is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                cpu, clock = usage.ru_utime + usage.ru_stime, time.monotonic() - self._begun
                self._ended = Ended(os.waitstatus_to_exitcode(status), self.shown, clock, cpu)
        return self._ended

    def wait(self, until: Callable[[], bool] | None = None, seconds: float = HANG_SECONDS) -> Ended | None:
        """Wait for the end, or for `until`; None when that came first. Kills a process that hangs."""
        limit = time.monotonic() + seconds
        while (ended := self.poll()) is None:
            if until is not None and until():
                return None
            if time.monotonic() > limit:
                if until is not None:
                    return None
                self.send(signal.SIGKILL)
            time.sleep(0.002)
        return ended

    def send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(
    arguments: Sequence[str],
    cwd: Path,
    log: Path,
    before: Callable[[], None] | None,
    after: Callable[[], None] | None,
) -> None:
    """The child: never returns."""
    code = 130  # of a signal before main, as Python has it
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.chdir(cwd)
        os.environ["XDG_CACHE_HOME"] = str(cwd / "cache")
        sys.argv = ["fastft", *arguments]
        # This process forked with the interpreter's own handlers in place.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()
        from fastft.cli import main

        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except KeyboardInterrupt:
            traceback.print_exc()
            code = 130
        except BaseException:
            traceback.print_exc()
            code = 1
        if after is not None:
            after()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def command(arguments: Sequence[str], cwd: Path, before: Callable[[], None] | None = None) -> Ended:
    """`fastft ARGUMENTS` in `cwd`, to its end."""
    ended = Child(arguments, cwd, before).wait()
    assert ended is not None
    return ended
