"""The figures of a run during training, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.files.atomic import write_text


@dataclass(frozen=True)
class StepMetrics:
    """One logged optimizer step; counts are of the steps since the line before.

    `tokens` are real ones, padding not counted. `loss` is the mean over trained tokens. `memory_bytes`: peak memory of
    the GPU, or of the process on a CPU.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    examples: int
    seconds: float
    memory_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def samples_per_second(self) -> float:
        return self.examples / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        rates = {"tokens_per_second": self.tokens_per_second, "samples_per_second": self.samples_per_second}
        return {"event": "step", **dataclasses.asdict(self), **{key: round(rate, 2) for key, rate in rates.items()}}


@dataclass(frozen=True)
class EvaluationMetrics:
    """An evaluation after optimizer step `step`: the figures that the trainer logs, such as `eval_loss`."""

    step: int
    figures: dict[str, float]

    @property
    def loss(self) -> float | None:
        """The held-out loss."""
        return self.figures.get("eval_loss")

    def as_json(self) -> dict[str, Any]:
        return {"event": "evaluation", "step": self.step, **self.figures}


@dataclass(frozen=True)
class OutOfMemory:
    """Memory ran out after optimizer step `step`, and training continued with smaller micro-batches.

    `rows`, `rows_now`: rows of a micro-batch x micro-batches of an optimizer step, before and after.
    """

    event: str = dataclasses.field(default="out_of_memory", init=False)
    step: int
    rows: str
    rows_now: str

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Totals:
    """Sums over all attempts of a run. `tokens`: real ones that were trained; `seconds` in optimizer steps."""

    tokens: int
    seconds: float
    out_of_memory: tuple[OutOfMemory, ...]


@dataclass(frozen=True)
class History:
    """All that metrics.jsonl holds, in its order."""

    steps: tuple[StepMetrics, ...]
    evaluations: tuple[EvaluationMetrics, ...]
    out_of_memory: tuple[OutOfMemory, ...]


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended and flushed at once, so that a crash loses at most one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: StepMetrics | EvaluationMetrics | OutOfMemory) -> None:
        """Append the line of an event."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event.as_json()) + "\n")

    def history(self) -> History:
        """Every line of the run, as it was logged."""
        steps, evaluations, retries = [], [], []
        names = [field.name for field in dataclasses.fields(StepMetrics)]
        for _, line in self._lines():
            if line["event"] == "step":
                steps.append(StepMetrics(**{name: line[name] for name in names}))
            elif line["event"] == "evaluation":
                figures = {key: value for key, value in line.items() if key not in ("event", "step")}
                evaluations.append(EvaluationMetrics(line["step"], figures))
            elif line["event"] == "out_of_memory":
                retries.append(OutOfMemory(line["step"], line["rows"], line["rows_now"]))
        return History(tuple(steps), tuple(evaluations), tuple(retries))

    def totals(self) -> Totals:
        """The sums over all attempts of the run."""
        history = self.history()
        tokens = sum(step.tokens for step in history.steps)
        return Totals(tokens, sum(step.seconds for step in history.steps), history.out_of_memory)

    def rewind(self, step: int, evaluations: int) -> None:
        """Remove the lines that a resumed run will write again, and damaged lines.

        These are all after optimizer step `step`, and at that step the evaluations after the first `evaluations`.
        """
        if not self._path.exists():
            return
        kept, seen = [], 0
        for text, line in self._lines():
            at_step = line["event"] == "evaluation" and line["step"] == step
            seen += at_step
            if line["step"] < step or (line["step"] == step and not (at_step and seen > evaluations)):
                kept.append(text + "\n")
        write_text(self._path, "".join(kept))

    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        """(text, content) of each line, without lines that a crash or a bad disk damaged."""
        lines = []
        content = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        for text in content.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int) and "event" in line:
                lines.append((text, line))
        return lines
