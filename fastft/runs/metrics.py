"""The figures of a run while it goes on, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
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
    """An evaluation after optimizer step `step`: what the trainer logs of it, such as `eval_loss`."""

    step: int
    figures: dict[str, float]


@dataclass(frozen=True)
class OutOfMemory:
    """Memory ran out in a micro-batch, and smaller ones took over after optimizer step `step`.

    `rows`, `rows_now`: rows of a micro-batch x micro-batches of an optimizer step, before and after.
    """

    event: str = dataclasses.field(default="out_of_memory", init=False)
    step: int
    rows: str
    rows_now: str


@dataclass(frozen=True)
class Totals:
    """Sums over all attempts of a run. `tokens`: real ones that were trained; `seconds` in optimizer steps."""

    tokens: int
    seconds: float
    out_of_memory: tuple[OutOfMemory, ...]


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended and flushed at once, so that a crash loses at most one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def step(self, metrics: StepMetrics) -> None:
        """Append the line of an optimizer step."""
        self._append(metrics.as_json())

    def evaluation(self, metrics: EvaluationMetrics) -> None:
        """Append the line of an evaluation."""
        self._append({"event": "evaluation", "step": metrics.step, **metrics.figures})

    def out_of_memory(self, event: OutOfMemory) -> None:
        """Append the line of a retry with smaller batches."""
        self._append(dataclasses.asdict(event))

    def _append(self, event: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def totals(self) -> Totals:
        """What all attempts of the run add up to."""
        lines = [line for _, line in self._lines()]
        steps = [line for line in lines if line["event"] == "step"]
        retries = [line for line in lines if line["event"] == "out_of_memory"]
        return Totals(
            sum(line["tokens"] for line in steps),
            sum(line["seconds"] for line in steps),
            tuple(OutOfMemory(line["step"], line["rows"], line["rows_now"]) for line in retries),
        )

    def rewind(self, step: int, evaluations: int) -> None:
        """Drop what a resumed run does again, and lines that are damaged.

        That is all after optimizer step `step`, and at that step the evaluations beyond the first `evaluations`.
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
        """Each line with what it says; without those that a crash or a bad disk left unreadable."""
        lines = []
        for text in (
            self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path.exists() else ()
        ):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int) and "event" in line:
                lines.append((text, line))
        return lines
