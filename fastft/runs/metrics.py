"""The figures of a run while it goes on, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended and flushed at once, so that a crash loses at most one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Every line of one kind, by all attempts of the run."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == kind]

    def totals(self) -> tuple[int, float]:
        """Real tokens trained and seconds spent in optimizer steps, by all attempts of the run."""
        steps = self.events("step")
        return sum(line["tokens"] for line in steps), sum(line["seconds"] for line in steps)

    def rewind(self, step: int) -> None:
        """Drop the lines after optimizer step `step`: the work that a resumed run does again."""
        if not self._path.exists():
            return
        lines = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        self._path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line that a crash cut off
        return float("inf")
