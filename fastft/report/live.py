"""Progress of a run: a live view on a terminal, one plain line a step in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fastft.console import BytesWritten, is_quiet, redact
from fastft.report.units import duration, size, sparkline
from fastft.report.written import show_bytes
from fastft.runs.metrics import EvaluationMetrics, StepMetrics

# Columns of the loss curve.
CURVE = 60


class LiveView:
    """Shows the stages and steps of a run. Use as a context manager; prints only to `console`.

    `clock`: seconds that passed; of a run that is read from its records, those of its steps.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._notes = console
        self._console = Console(quiet=True) if is_quiet() else console
        self._clock = clock
        self._losses: list[float] = []
        self._held_out: EvaluationMetrics | None = None
        self._warning = ""
        self._started: float | None = None
        self._first_step = 0
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("train", total=1, left="", visible=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop()

    def stage(self, text: str) -> None:
        """Print what the run does now, for work that takes more than a moment."""
        self._stop()
        self._console.print(Text("• ", style="cyan") + Text(redact(text)))

    def note(self, text: str) -> None:
        """Print something that the user should know; it also stays in the view."""
        self._warning = redact(text)
        self._notes.print(Text("! ", style="yellow") + Text(self._warning))

    def writing(self, name: str) -> AbstractContextManager[BytesWritten]:
        """Show how far the writing of a large file is, while the context lasts."""
        self._stop()
        return show_bytes(self._console, name)

    def evaluation(self, metrics: EvaluationMetrics, *, quiet: bool = False) -> None:
        """Show the held-out loss of an evaluation, from the next step on; `quiet`: print no line of its own."""
        if metrics.loss is None:
            return
        self._held_out = metrics
        if not (quiet or self._console.is_terminal):
            self.stage(f"held-out loss {metrics.loss:.4f} after step {metrics.step}")

    def earlier(self, metrics: StepMetrics) -> None:
        """Take in a step that happened before anybody looked, without showing it."""
        self._losses.append(metrics.loss)
        if self._started is None:
            self._started, self._first_step = self._clock() - metrics.seconds, metrics.step - 1

    def step(self, metrics: StepMetrics) -> None:
        """Show one logged step."""
        self.earlier(metrics)
        left = self._time_left(metrics)
        if not self._console.is_terminal:
            self._console.print(_line(metrics, left), soft_wrap=True, highlight=False, markup=False)
            return
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        self._progress.update(
            self._task, total=metrics.total_steps, completed=metrics.step, left=f"{left} left", visible=True
        )
        panel = _panel(metrics, self._losses, self._held_out, self._warning)
        self._live.update(Group(self._progress, panel))

    def _time_left(self, metrics: StepMetrics) -> str:
        done = metrics.step - self._first_step
        elapsed = self._clock() - (self._started or 0.0)
        return duration(elapsed / done * (metrics.total_steps - metrics.step)) if done else "?"

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _line(metrics: StepMetrics, left: str) -> str:
    """One step as plain text."""
    norm = "" if metrics.grad_norm is None else f"  grad_norm {metrics.grad_norm:.3f}"
    if metrics.rewards:
        norm += f"  margin {metrics.rewards['margin']:.3f}  right {metrics.rewards['accuracy']:.0%}"
    padding = "" if metrics.padding is None else f"  padding {metrics.padding:.0%}"
    return (
        f"step {metrics.step}/{metrics.total_steps}  epoch {metrics.epoch:.2f}  loss {metrics.loss:.4f}  "
        f"lr {metrics.learning_rate:.2e}{norm}  {metrics.tokens_per_second:.0f} tokens/s  "
        f"{metrics.samples_per_second:.2f} samples/s{padding}{_steadiness(metrics)}  "
        f"memory {size(metrics.memory_bytes)}  left {left}"
    )


def _steadiness(metrics: StepMetrics) -> str:
    """Clipped steps and the noise scale, where there are any."""
    clipped = f"  clipped {metrics.clipped}" if metrics.clipped else ""
    return clipped if metrics.noise_scale is None else f"{clipped}  noise scale {metrics.noise_scale[0]:.0f}"


def _panel(metrics: StepMetrics, losses: Sequence[float], held_out: EvaluationMetrics | None, warning: str) -> Table:
    """The current figures, the loss curve with the held-out loss, and the last thing that was said."""
    table = Table.grid(padding=(0, 3))
    cells = {
        "loss": f"{metrics.loss:.4f}",
        "learning rate": f"{metrics.learning_rate:.2e}",
        "grad norm": "-" if metrics.grad_norm is None else f"{metrics.grad_norm:.3f}",
        **({"margin": f"{metrics.rewards['margin']:.3f}"} if metrics.rewards else {}),
        "tokens/s": f"{metrics.tokens_per_second:.0f}",
        "padding": "-" if metrics.padding is None else f"{metrics.padding:.0%}",
        **({} if metrics.noise_scale is None else {"noise scale": f"{metrics.noise_scale[0]:.0f}"}),
        "memory": size(metrics.memory_bytes),
        "epoch": f"{metrics.epoch:.2f}",
    }
    table.add_row(*cells, style="dim")
    table.add_row(*cells.values(), style="bold")
    panel = Table.grid()
    panel.add_row(table)
    panel.add_row(Text(sparkline(losses, CURVE), style="cyan"))
    if held_out is not None:
        panel.add_row(Text(f"held-out loss {held_out.loss:.4f} after step {held_out.step}"))
    if warning:
        panel.add_row(Text(f"! {warning}", style="yellow"))
    return panel
