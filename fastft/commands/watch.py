"""`fastft watch`: a running run followed from another terminal, by its records alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console

from fastft.errors import Interrupted, Problem, TrainingError, UsageError, Where
from fastft.report.live import LiveView
from fastft.runs.directory import RunDir
from fastft.runs.metrics import EvaluationMetrics, Event, MetricsFile, OutOfMemory, StepMetrics, Warned
from fastft.runs.state import State, state_of
from fastft.runs.verdict import judge

# Shorter than any step that a person follows.
POLL_SECONDS = 0.5
EXIT_CODES: dict[State, int] = {
    "finished": 0,
    "running": 0,
    "failed": TrainingError.exit_code,
    "stopped": Interrupted.exit_code,
}


class Follower:
    """Shows the lines of a run's metrics.jsonl as they come, and takes them from the start when a run rewound them."""

    def __init__(self, run: RunDir, console: Console) -> None:
        self._path = run.metrics
        self._console = console
        self._begin()

    def _begin(self) -> None:
        self._seconds, self._file, self._read, self._lines = 0.0, 0, 0, 0
        self.view = LiveView(self._console, clock=lambda: self._seconds)

    def follow(self) -> bool:
        """Show what is new; whether anything was.

        Of what happened before the first look, a pipe gets the newest step alone.

        Raises:
            MachineError: a line is damaged.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        if (status.st_ino, status.st_size >= self._read) != (self._file, True):
            self.view.__exit__()
            self._begin()
            self._file = status.st_ino
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        events = MetricsFile(self._path).events(whole, self._lines + 1)
        first_look = self._read == 0
        self._read += len(whole)
        self._lines += len(events)
        newest = max((place for place, event in enumerate(events) if isinstance(event, StepMetrics)), default=-1)
        for place, event in enumerate(events):
            self._show(event, earlier=first_look and place < newest)
        return bool(events)

    def _show(self, event: Event, *, earlier: bool) -> None:
        if isinstance(event, StepMetrics):
            self._seconds += event.seconds
            (self.view.earlier if earlier else self.view.step)(event)
        elif isinstance(event, EvaluationMetrics):
            self.view.evaluation(event, quiet=earlier)
        elif isinstance(event, Warned):
            self.view.note(f"step {event.step}: {event.text}")
        elif isinstance(event, OutOfMemory):
            self.view.note(f"out of memory with {event.rows} rows; from step {event.step} with {event.rows_now}")


def watch_in_terminal(folder: Path, *, once: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a run until it ends, then how it ended; exit code 0, or that of a run that failed or was stopped.

    Raises:
        UsageError: `folder` is no run.
        MachineError: a record of the run is damaged.
    """
    run = RunDir(folder)
    if not run.recipe.is_file():
        raise UsageError(Problem(Where(str(folder)), "", "is no folder of a run", "name one; fastft runs lists them"))
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    follower, said = Follower(run, console), False
    try:
        while True:
            state, why = state_of(run)  # before the lines: none can come after the end
            new = follower.follow()
            if once or state != "running":
                break
            if not new and not said and not run.metrics.exists():
                follower.view.stage(f"{folder} is running; no step is logged yet")
                said = True
            sleep(POLL_SECONDS)
    finally:
        follower.view.__exit__()
    print(_end(run, state, why), flush=True)
    if EXIT_CODES[state]:
        raise typer.Exit(EXIT_CODES[state])


def _end(run: RunDir, state: State, why: str) -> str:
    """The last line: the verdict of a finished run, or its state and why."""
    result = run.result
    if result is not None:
        return f"finished: {judge(result)}"
    return f"{state}: {why}" if why else state
