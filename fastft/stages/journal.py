"""What is kept and shown while a run trains: each event in metrics.jsonl and the view, the page at evaluations."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from fastft.report.live import LiveView
from fastft.report.page import write_page
from fastft.runs.directory import RunDir
from fastft.runs.metrics import EvaluationMetrics, MetricsFile, StepMetrics, Warned


@dataclass(frozen=True)
class Journal:
    """Of rank 0: the others keep and show nothing."""

    run: RunDir
    view: LiveView
    is_first: bool

    @property
    def _metrics(self) -> MetricsFile:
        return MetricsFile(self.run.metrics)

    def step(self, line: StepMetrics) -> None:
        """Keep and show a logged step.

        Raises:
            FileNotFoundError: the folder of the run was removed.
        """
        if not self.is_first:
            return
        if not self.run.recipe.is_file():  # saving would make the folder anew, without what was in it
            raise FileNotFoundError(self.run.path)
        self._metrics.append(line)
        self.view.step(line)

    def evaluated(self, line: EvaluationMetrics) -> None:
        """Keep and show an evaluation, and write the page of the run with it."""
        if not self.is_first:
            return
        self._metrics.append(line)
        self.view.evaluation(line)
        if line.step == 0:  # nothing is trained yet
            return
        try:
            write_page(self.run, state=("running", ""))
        except Exception:  # the page is written again at the end, which says what is wrong
            traceback.print_exc()  # to the log of the attempt

    def warned(self, step: int, text: str) -> None:
        """Keep and show what the run says about itself."""
        if not self.is_first:
            return
        self._metrics.append(Warned(step, text))
        self.view.note(f"step {step}: {text}")
