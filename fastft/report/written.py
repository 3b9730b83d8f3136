"""How far the writing of a large file is: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fastft.console import BytesWritten
from fastft.report.units import duration, share

# Often enough to see that it goes on, and a log of an hour has no more than 360 lines.
LINE_SECONDS = 10.0


@contextmanager
def show_bytes(console: Console, name: str, clock: Callable[[], float] = time.monotonic) -> Iterator[BytesWritten]:
    """Show on `console` how far the writing of `name` is while the block lasts: bytes, percentage and time left."""
    if not console.is_terminal:
        yield _lines(console, name, clock)
        return
    start = clock()
    # What libraries print meanwhile goes to the log of the export, not to the bar.
    with Progress(
        TextColumn("• {task.description}:", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(name, total=None, state="")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, state=_state(done, total, clock() - start))

        yield show


def _lines(console: Console, name: str, clock: Callable[[], float]) -> BytesWritten:
    """Prints a line at most every LINE_SECONDS, the first one after that time."""
    start = last = clock()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last >= LINE_SECONDS:
            last = now
            console.print(
                f"• {name}: {_state(done, total, now - start)}", soft_wrap=True, highlight=False, markup=False
            )

    return show


def _state(done: int, total: int, seconds: float) -> str:
    """The bytes, and the time left at the rate so far."""
    if done >= total:
        return share(done, total)
    left = f", {duration(seconds / done * (total - done))} left" if done else ""
    return share(done, total) + left
