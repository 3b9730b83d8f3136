from __future__ import annotations

from pathlib import Path

from fastft.runs.metrics import MetricsFile, StepMetrics


def test_rates_are_counts_over_seconds() -> None:
    step = StepMetrics(1, 2, 0.5, 1.0, 1e-4, None, tokens=300, examples=4, seconds=2.0, memory_bytes=0)

    line = step.as_json()

    assert (line["event"], line["tokens_per_second"], line["samples_per_second"]) == ("step", 150.0, 2.0)


def test_no_time_is_no_rate() -> None:
    step = StepMetrics(1, 2, 0.5, 1.0, 1e-4, None, tokens=300, examples=4, seconds=0.0, memory_bytes=0)

    assert (step.tokens_per_second, step.samples_per_second) == (0.0, 0.0)


def test_padding_is_what_was_computed_beside_the_real_tokens(tmp_path: Path) -> None:
    step = StepMetrics(
        1,
        2,
        0.5,
        1.0,
        1e-4,
        1.0,
        tokens=300,
        examples=4,
        seconds=2.0,
        memory_bytes=0,
        computed_tokens=400,
        clipped=1,
        noise_scale=(20.0, 10.0, 30.0),
    )
    old = StepMetrics(1, 2, 0.5, 1.0, 1e-4, None, tokens=300, examples=4, seconds=2.0, memory_bytes=0)

    assert step.padding == 0.25
    assert step.as_json()["padding_share"] == 0.25
    assert old.padding is None
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(step)
    file.append(old)
    assert file.history().steps == (step, old)
