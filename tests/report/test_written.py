from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastft.report.live import LiveView
from fastft.report.units import share, size
from fastft.report.written import LINE_SECONDS, show_bytes

GIB = 2**30


class Clock:
    """Time that passes only when it is asked to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(terminal: bool, seconds: int, total: int = 100 * GIB) -> str:
    """What is shown of a file of `total` bytes that takes `seconds`, with one call a second."""
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with show_bytes(console, "q8_0", clock) as on_bytes:
        for second in range(1, seconds + 1):
            clock.now = float(second)
            on_bytes(total * second // seconds, total)
    return stream.getvalue()


def test_a_pipe_gets_at_most_one_line_in_ten_seconds() -> None:
    lines = shown(terminal=False, seconds=100).splitlines()

    assert LINE_SECONDS == 10
    assert len(lines) == 10
    assert lines[3] == "• q8_0: 40.00 of 100.00 GiB (40 %), 1 min 00 s left"
    assert lines[-1] == "• q8_0: 100.00 of 100.00 GiB (100 %)"


def test_what_is_written_within_seconds_needs_no_line_in_a_pipe() -> None:
    assert shown(terminal=False, seconds=9) == ""


def test_a_terminal_shows_a_bar_that_ends_with_every_byte() -> None:
    text = shown(terminal=True, seconds=5)

    assert "q8_0" in text
    assert "━" in text
    assert "100.00 of 100.00 GiB (100 %)" in text


def test_a_bar_ends_when_the_writing_fails() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)

    def fail() -> None:
        with show_bytes(console, "q8_0") as on_bytes:
            on_bytes(1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is visible again


def test_the_view_of_a_run_shows_its_exports_too() -> None:
    stream = io.StringIO()
    view = LiveView(Console(file=stream, force_terminal=True, width=100))
    with view.writing("f16") as on_bytes:
        on_bytes(3 * GIB, 3 * GIB)

    assert "3.00 of 3.00 GiB (100 %)" in stream.getvalue()


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (1.2 * GIB, 3.4 * GIB, "1.20 of 3.40 GiB (35 %)"),
        (2**20, 3.4 * GIB, "0.00 of 3.40 GiB (0 %)"),
        (GIB - 1, GIB, "1.00 of 1.00 GiB (99 %)"),  # not before the last byte
        (7 * 2**20, 138 * 2**20, "7 of 138 MiB (5 %)"),
        (0, 0, "0 of 0 B (100 %)"),
    ],
)
def test_a_share_is_in_the_unit_of_the_whole(done: float, total: float, text: str) -> None:
    assert share(done, total) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1024, "1 KiB"), (84 * 2**20, "84 MiB"), (5.7 * GIB, "5.70 GiB")]
)
def test_a_size_has_a_binary_unit(count: float, text: str) -> None:
    assert size(count) == text
