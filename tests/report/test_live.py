from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from fastft.report.live import LiveView
from fastft.report.units import duration, size, sparkline
from fastft.runs.metrics import StepMetrics

STEP = StepMetrics(
    step=3,
    total_steps=60,
    epoch=0.05,
    loss=1.25,
    learning_rate=2e-4,
    grad_norm=0.5,
    tokens=1000,
    examples=8,
    seconds=4.0,
    memory_bytes=1536 * 1024**2,
)


MEASURED = ("2.00 samples/s  padding 25%  clipped 2  noise scale 42  memory 1.50 GiB",)


def shown(*, terminal: bool, steps: int = 1, step: StepMetrics = STEP) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False, color_system=None)
    with LiveView(console) as view:
        view.stage("loading [model]")
        view.note("2 rows [are] left out")
        for _ in range(steps):
            view.step(step)
    return stream.getvalue()


def test_in_a_pipe_a_step_is_one_plain_line() -> None:
    lines = shown(terminal=False, steps=2).splitlines()

    assert len(lines) == 4
    assert lines[2].startswith("step 3/60  epoch 0.05  loss 1.2500  lr 2.00e-04  grad_norm 0.500  250 tokens/s  2.00 ")
    assert "samples/s  memory 1.50 GiB  left " in lines[2]
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_a_view_shows_the_figures() -> None:
    text = shown(terminal=True)

    for part in ("step 3/60", "loss", "1.2500", "learning rate", "tokens/s", "250", "1.50 GiB"):
        assert part in text


@pytest.mark.parametrize(("terminal", "says"), [(True, ("padding", "25%", "noise scale", "42")), (False, MEASURED)])
def test_padding_clipped_steps_and_the_noise_scale_are_shown_where_they_are_known(
    terminal: bool, says: tuple[str, ...]
) -> None:
    measured = dataclasses.replace(STEP, computed_tokens=1333, clipped=2, noise_scale=(42.0, 30.0, 60.0))

    text = shown(terminal=terminal, step=measured)

    assert all(part in text for part in says)


@pytest.mark.parametrize("terminal", [True, False])
def test_square_brackets_are_text(terminal: bool) -> None:
    text = shown(terminal=terminal)

    assert "loading [model]" in text
    assert "2 rows [are] left out" in text


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 10, ""),
        ([1.0], 10, "▁"),
        ([1.0, 1.0], 10, "▁▁"),
        ([0.0, 7.0], 10, "▁█"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, "▁▂▃▄▅▆▇█"),
        ([0.0, 0.0, 7.0, 7.0], 2, "▁█"),
        ([float("nan"), 0.0, float("inf"), 7.0], 10, "▁█"),
        ([float("nan")], 10, ""),
    ],
)
def test_a_sparkline_shows_the_means_of_equal_stretches(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3600, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_a_duration_is_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (1536, "2 KiB"), (84 * 1024**2, "84 MiB"), (5.7 * 1024**3, "5.70 GiB")],
)
def test_a_size_has_a_binary_unit(count: float, text: str) -> None:
    assert size(count) == text
