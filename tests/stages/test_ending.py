"""However an attempt ends, its message and its page are there, and a page that cannot be made harms nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastft.errors import Interrupted, Problem, TrainingError, Where
from fastft.runs.directory import new_attempt
from fastft.runs.state import state_of
from fastft.stages.ending import reported
from tests.report.made_up import make_run


@pytest.mark.parametrize(("kind", "state"), [(TrainingError, "failed"), (Interrupted, "stopped")])
def test_an_attempt_that_does_not_finish_leaves_its_message_and_a_page(
    tmp_path: Path, kind: type[TrainingError | Interrupted], state: str
) -> None:
    run = make_run(tmp_path / "run", steps=12, result=None)
    log, notes = new_attempt(run), list[str]()

    with pytest.raises(kind), reported(run, log.parent, notes.append):
        raise kind(Problem(Where("log.txt"), "", "<b>it broke</b>", "look there"))

    assert state_of(run) == (state, "log.txt: <b>it broke</b>; look there")
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert f">{state.capitalize()} after optimizer step 12 of 60: log.txt: &lt;b&gt;it broke&lt;/b&gt;" in page
    assert notes == []


def test_a_page_that_cannot_be_made_is_said_and_the_run_stays_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.plan.write_text("{")
    log, notes = new_attempt(run), list[str]()

    with reported(run, log.parent, notes.append):
        pass

    assert state_of(run) == ("finished", "")
    assert len(notes) == 1
    assert "report.html could not be written" in notes[0]


def test_a_folder_that_was_removed_is_not_made_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", result=None)
    run.recipe.unlink()

    with reported(run, tmp_path, lambda _: None):
        pass

    assert not (run.path / "report.html").exists()
