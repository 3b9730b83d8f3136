"""`fastft watch` on runs whose records grow while it looks."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from fastft.cli import app
from fastft.commands.watch import Follower, watch_in_terminal
from fastft.runs.directory import RunDir, locked
from fastft.runs.metrics import EvaluationMetrics, MetricsFile, OutOfMemory, StepMetrics, Warned
from fastft.runs.state import Ended, keep_end
from tests.report.made_up import RESULT, make_run


def step(number: int, seconds: float = 2.0) -> StepMetrics:
    return StepMetrics(number, 20, number / 20, 4.0 / number, 1e-3, 1.0, 300, 4, seconds, 2**30, computed_tokens=400)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = make_run(tmp_path / "run", steps=0, result=None)
    made.metrics.unlink()
    return made


def following(run: RunDir, *, terminal: bool = False) -> tuple[Follower, io.StringIO]:
    shown = io.StringIO()
    return Follower(run, Console(file=shown, force_terminal=terminal, width=100, color_system=None)), shown


def test_lines_are_shown_once_as_they_come(run: RunDir) -> None:
    follower, shown = following(run)
    metrics = MetricsFile(run.metrics)

    assert not follower.follow()
    for number in (1, 2):
        metrics.append(step(number))
        assert follower.follow()
    metrics.append(EvaluationMetrics(2, {"eval_loss": 1.5}))
    metrics.append(Warned(2, "the loss rose"))
    metrics.append(OutOfMemory(2, "4 x 1", "2 x 2"))
    follower.follow()
    follower.follow()

    lines = shown.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["step 1/20", "step 2/20"]
    assert "padding 25%" in lines[0]
    assert lines[0].endswith("left 38 s")
    assert lines[2:] == [
        "• held-out loss 1.5000 after step 2",
        "! step 2: the loss rose",
        "! out of memory with 4 x 1 rows; from step 2 with 2 x 2",
    ]


def test_half_a_line_waits_for_its_rest(run: RunDir) -> None:
    MetricsFile(run.metrics).append(step(1))
    whole = run.metrics.read_bytes()
    run.metrics.write_bytes(whole[:20])
    follower, shown = following(run)
    assert not follower.follow()

    with run.metrics.open("ab") as file:
        file.write(whole[20:])

    assert follower.follow()
    assert shown.getvalue().startswith("step 1/20")


def test_of_what_was_before_a_pipe_gets_the_newest_step_alone(run: RunDir) -> None:
    for number in range(1, 9):
        MetricsFile(run.metrics).append(step(number))
    follower, shown = following(run)

    follower.follow()

    assert [line.split("  ")[0] for line in shown.getvalue().splitlines()] == ["step 8/20"]
    assert "left 24 s" in shown.getvalue(), "12 steps of 2 s, by the steps that nobody saw"


def test_a_run_that_goes_back_to_its_checkpoint_is_followed_from_there(run: RunDir) -> None:
    metrics = MetricsFile(run.metrics)
    for number in (1, 2, 3):
        metrics.append(step(number))
    follower, shown = following(run)
    follower.follow()

    metrics.restore(run.metrics.read_bytes().splitlines(keepends=True)[0])
    metrics.append(step(2))
    follower.follow()

    assert [line.split("  ")[0] for line in shown.getvalue().splitlines()] == ["step 3/20", "step 2/20"]


def test_on_a_terminal_the_view_has_curve_held_out_loss_and_last_warning(run: RunDir) -> None:
    metrics = MetricsFile(run.metrics)
    metrics.append(EvaluationMetrics(0, {"eval_loss": 3.25}))
    for number in range(1, 9):
        metrics.append(step(number))
        if number == 4:
            metrics.append(Warned(4, "the loss rose"))
    follower, shown = following(run, terminal=True)

    follower.follow()
    follower.view.__exit__()

    for part in ("step 8/20", "24 s left", "padding", "25%", "held-out loss 3.2500 after step 0", "! step 4: the loss"):
        assert part in shown.getvalue()
    assert "█" in shown.getvalue()
    assert "▁" in shown.getvalue()


def test_it_ends_with_the_run_and_says_how(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(run):
        looks = []

        def sleep(_: float) -> None:
            looks.append(1)
            if len(looks) == 1:
                MetricsFile(run.metrics).append(step(1))
            elif len(looks) == 2:
                run.write(RESULT)

        watch_in_terminal(run.path, once=False, sleep=sleep)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"• {run.path} is running; no step is logged yet"
    assert lines[1].startswith("step 1/20")
    assert lines[-1].startswith("finished: Better: the held-out loss fell from 3.0000 to 0.2500")
    assert len(looks) == 2


def test_a_stopped_run_ends_with_its_message_and_its_exit_code(run: RunDir) -> None:
    (run.attempts / "1").mkdir(parents=True)
    keep_end(run.attempts / "1", Ended(True, "stopped by SIGTERM"))

    with pytest.raises(typer.Exit) as ended:
        watch_in_terminal(run.path, once=False)

    assert ended.value.exit_code == 75


def test_once_shows_where_a_running_run_is(run: RunDir) -> None:
    MetricsFile(run.metrics).append(step(3))
    with locked(run):
        done = CliRunner().invoke(app, ["watch", str(run.path), "--once"])

    assert done.exit_code == 0
    assert done.stdout.startswith("step 3/20")
    assert done.stdout.endswith("running\n")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["watch", str(tmp_path)])

    assert "is no folder of a run" in str(done.exception.problems)  # type: ignore[union-attr]
