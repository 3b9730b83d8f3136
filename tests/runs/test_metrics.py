from __future__ import annotations

from fastft.runs.metrics import StepMetrics


def test_rates_are_counts_over_seconds() -> None:
    step = StepMetrics(1, 2, 0.5, 1.0, 1e-4, None, tokens=300, examples=4, seconds=2.0, memory_bytes=0)

    line = step.as_json()

    assert (line["event"], line["tokens_per_second"], line["samples_per_second"]) == ("step", 150.0, 2.0)


def test_no_time_is_no_rate() -> None:
    step = StepMetrics(1, 2, 0.5, 1.0, 1e-4, None, tokens=300, examples=4, seconds=0.0, memory_bytes=0)

    assert (step.tokens_per_second, step.samples_per_second) == (0.0, 0.0)
