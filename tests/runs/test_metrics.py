from __future__ import annotations

import json
from pathlib import Path

from fastft.runs.metrics import MetricsFile, StepMetrics


def test_rates_are_counts_over_seconds() -> None:
    step = StepMetrics(1, 2, 0.5, 1.0, 1e-4, None, tokens=300, examples=4, seconds=2.0, memory_bytes=0)

    line = step.as_json()

    assert (line["event"], line["tokens_per_second"], line["samples_per_second"]) == ("step", 150.0, 2.0)


def test_no_time_is_no_rate() -> None:
    step = StepMetrics(1, 2, 0.5, 1.0, 1e-4, None, tokens=300, examples=4, seconds=0.0, memory_bytes=0)

    assert (step.tokens_per_second, step.samples_per_second) == (0.0, 0.0)


def test_a_resumed_run_drops_the_steps_that_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for step in (1, 2, 3):
        metrics.step(StepMetrics(step, 3, 1.0, 0.5, 1e-4, None, tokens=10, examples=1, seconds=1.0, memory_bytes=0))
    with path.open("a") as file:
        file.write('{"event": "step", "st')  # a crash cut it off

    metrics.rewind(2, 0)

    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_run_without_metrics_has_nothing_to_drop(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl").rewind(5, 0)

    assert list(tmp_path.iterdir()) == []
