"""`fastft runs` and `fastft report` on made-up runs."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from fastft.cli import app
from fastft.runs.directory import locked
from fastft.runs.state import Ended, keep_end, state_of
from tests.report.made_up import make_run


def test_runs_are_listed_with_their_state_and_figures(tmp_path: Path) -> None:
    make_run(tmp_path / "done")
    run = make_run(tmp_path / "half", steps=12, result=None)
    (run.attempts / "1").mkdir(parents=True)
    keep_end(run.attempts / "1", Ended(True, "stopped by SIGTERM"))
    (tmp_path / "no run").mkdir()

    done = CliRunner().invoke(app, ["runs", str(tmp_path), "--json"])

    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert list(listed) == ["done", "half"]
    assert (listed["done"]["state"], listed["half"]["state"]) == ("finished", "stopped")
    assert (listed["half"]["steps"], listed["half"]["total_steps"]) == (12, 60)
    assert (listed["done"]["loss_before"], listed["done"]["loss_after"]) == (3.0, 0.25)
    assert listed["done"]["seconds"] == 180.0
    assert listed["done"]["size_bytes"] == sum(path.stat().st_size for path in (tmp_path / "done").iterdir())


def test_the_table_has_a_line_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "done")

    done = CliRunner().invoke(app, ["runs", str(tmp_path)], env={"COLUMNS": "120"})

    line = next(line for line in done.stdout.splitlines() if line.startswith("done"))
    assert [cell.strip() for cell in line.split("│")][:6] == [
        "done",
        "finished",
        "60",
        "3.0000",
        "0.2500",
        "3 min 00 s",
    ]


def test_a_folder_without_runs_and_one_that_is_missing_are_said(tmp_path: Path) -> None:
    runner = CliRunner()

    assert runner.invoke(app, ["runs", str(tmp_path)]).stdout == f"no runs in {tmp_path}\n"
    missing = runner.invoke(app, ["runs", str(tmp_path / "none")])
    assert "there is no such folder" in str(missing.exception.problems[0])  # type: ignore[union-attr]


def test_the_state_of_a_run_is_that_of_its_last_attempt(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", result=None)
    for number in ("9", "10"):
        (run.attempts / number).mkdir(parents=True)
    keep_end(run.attempts / "9", Ended(False, "an earlier one"))

    with locked(run):
        assert state_of(run) == ("running", "")
    assert state_of(run)[0] == "failed"
    keep_end(run.attempts / "10", Ended(True, "stopped by SIGTERM"))
    assert state_of(run) == ("stopped", "stopped by SIGTERM")


def test_a_report_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "page.html"

    done = CliRunner().invoke(app, ["report", str(run.path), "--out", str(out)])

    assert done.stdout.strip() == str(out)
    assert out.read_text().startswith("<!doctype html>")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path)])

    assert "is no folder of a run" in str(done.exception.problems)  # type: ignore[union-attr]
