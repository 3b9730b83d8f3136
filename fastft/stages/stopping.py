"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, Self

# A terminal that closes or a lost connection sends SIGHUP, a scheduler SIGTERM or SIGUSR1.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopping:
    """Ends the run at the first of SIGNALS with KeyboardInterrupt; while `deferred`, a first one is only noted."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers. A run in another thread belongs to a program that has its own.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """For work that looks at `asked` itself, and saves first."""
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
