"""Where words go: a note to standard error, a console of one's own, the output of libraries to a log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]
"""Takes one line of progress."""
BytesWritten = Callable[[int, int], None]
"""Takes the bytes that are written so far, and the bytes in all: equal when it is called for the last time."""
Writing = Callable[[str], AbstractContextManager[BytesWritten]]
"""Shows how far the writing of what has this name is, while the context lasts."""


def ignore_bytes(done: int, total: int) -> None:
    """Show nothing."""


def write_silently(_: str) -> AbstractContextManager[BytesWritten]:
    """Show nothing of how far the writing is."""
    return contextlib.nullcontext(ignore_bytes)


def say(text: str) -> None:
    """Print one line of progress to standard error, which keeps standard output for results."""
    print(f"• {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def private_console() -> Iterator[Console]:
    """A console on a private copy of standard error, which stays the terminal while `library_output_to` is active."""
    from rich.console import Console

    with os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1) as stream:
        yield Console(file=stream, highlight=False, soft_wrap=not stream.isatty())


@contextlib.contextmanager
def library_output_to(log: Path) -> Iterator[None]:
    """Send what is written to the process's standard output and error to `log`, file descriptors and logging included.

    A console that shows progress meanwhile must be a `private_console`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        handler = logging.StreamHandler()
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            logging.getLogger().removeHandler(handler)
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
