"""Output: progress to standard error, a private console, the output of libraries to a log."""

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
"""Takes the bytes written so far, and the bytes in all; at the last call they are equal."""
Writing = Callable[[str], AbstractContextManager[BytesWritten]]
"""Takes a name, and shows the progress of writing it until the context ends."""


def ignore_bytes(done: int, total: int) -> None:
    """Show nothing."""


def write_silently(_: str) -> AbstractContextManager[BytesWritten]:
    """Show no progress of writing."""
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
    """Send the process's standard output and error to `log`, file descriptors and logging included.

    So are `sys.stdout` and `sys.stderr` if a notebook replaced them. A console that shows progress meanwhile must be a
    `private_console`. At the end secrets are taken out of `log`.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(redact_file, log)  # the last callback: all is written then
        file = stack.enter_context(log.open("ab", buffering=0))
        text = stack.enter_context(log.open("a", encoding="utf-8", buffering=1))
        streams = (1, sys.stdout, contextlib.redirect_stdout), (2, sys.stderr, contextlib.redirect_stderr)
        for number, stream, redirect in streams:
            stream.flush()
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(file.fileno(), number)
            if not _has_descriptor(stream, number):
                stack.enter_context(redirect(text))
        handler = logging.StreamHandler()
        logging.getLogger().addHandler(handler)
        stack.callback(logging.getLogger().removeHandler, handler)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _has_descriptor(stream: TextIO, number: int) -> bool:
    """Whether `stream` writes to that file descriptor; that of a notebook or a test has another one or none."""
    try:
        return stream.fileno() == number
    except OSError:  # io.UnsupportedOperation is one
        return False
