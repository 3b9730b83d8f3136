"""Work beside the run, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Beside:
    """Does `work` in a thread at once. A process that ends does not wait for it: then `work` must leave no trace."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._do, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the end of the work, and raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _do(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error
