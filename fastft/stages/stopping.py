"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, Self

# A terminal that closes or a lost connection sends SIGHUP, a scheduler SIGTERM or SIGUSR1.
# Windows knows the first two.
SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if name in signal.Signals.__members__
)


class Stopping:
    """Raises KeyboardInterrupt at one of SIGNALS; while `deferred`, the first one is only recorded."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; a program that runs this in another thread has its own.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def record(self, number: signal.Signals) -> None:
        """Ask to stop from outside: another process of the run got the signal."""
        self.asked = self.asked or number

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """For code that checks `asked` itself, and saves before it stops."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _ask(self, number: int, _: object) -> None:
        first = self.asked is None
        self.asked = self.asked or signal.Signals(number)
        if not (first and self._deferred):
            raise KeyboardInterrupt
