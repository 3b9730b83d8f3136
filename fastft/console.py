"""Where words go: a note to standard error, a console of one's own, the output of libraries to a log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fastft.redaction import redact, redact_file

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
    print(f"• {redact(text)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def private_console() -> Iterator[Console]:
    """A console on standard error that stays there while `library_output_to` is active.

    In a notebook standard error is an object of its own; elsewhere the console has a copy of the file descriptor.
    """
    from rich.console import Console

    with contextlib.ExitStack() as stack:
        stream = sys.stderr
        if _has_descriptor(stream, 2):
            stream = stack.enter_context(os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1))
        # Plain lines in a notebook too: rich would write HTML to the standard output of the cell.
        yield Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), force_jupyter=False)


@contextlib.contextmanager
def library_output_to(log: Path) -> Iterator[None]:
    """Send what is written to the process's standard output and error to `log`, file descriptors and logging included.

    So are `sys.stdout` and `sys.stderr` where a notebook replaced them. A console that shows progress meanwhile must be
    a `private_console`. At the end secrets are taken out of `log`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as file, log.open("a", encoding="utf-8", buffering=1) as text:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        replaced = contextlib.ExitStack()
        if not _has_descriptor(sys.stdout, 1):
            replaced.enter_context(contextlib.redirect_stdout(text))
        if not _has_descriptor(sys.stderr, 2):
            replaced.enter_context(contextlib.redirect_stderr(text))
        handler = logging.StreamHandler()
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            logging.getLogger().removeHandler(handler)
            replaced.close()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
            redact_file(log)


def _has_descriptor(stream: TextIO, number: int) -> bool:
    """Whether `stream` writes to that file descriptor; a notebook's and a test's stream has another one or none."""
    try:
        return stream.fileno() == number
    except OSError:  # io.UnsupportedOperation is one
        return False
