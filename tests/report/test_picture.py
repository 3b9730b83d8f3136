"""The picture of a run: well-formed SVG that loads nothing and says what the page says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.report.picture import WIDTH, picture
from fastft.runs.result import BeforeAfter
from fastft.runs.state import Ended, keep_end
from tests.report.made_up import HOSTILE, RESULT, make_run


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("text")]  # noqa: S314


def test_it_has_the_verdict_the_figures_and_the_loss(tmp_path: Path) -> None:
    made = picture(make_run(tmp_path / "run", result=dataclasses.replace(RESULT, eval_loss=BeforeAfter(3.0, 0.25))))

    shown = texts(made)
    assert shown[0].startswith("Better: the held-out loss fell from 3.0000 to 0.2500")
    for part in (
        "held-out loss",
        "3.0000",
        "0.2500",
        "5 min 00 s",
        "2.00 GiB",
        "optimizer step",
        "loss (nats a token)",
    ):
        assert part in shown
    assert not re.search(r"href|url\(|@import|<script", made)
    assert made.count("http") == 1, "its namespace alone"


def test_a_run_that_made_the_model_worse_says_so_first(tmp_path: Path) -> None:
    made = picture(make_run(tmp_path / "run", result=dataclasses.replace(RESULT, eval_loss=BeforeAfter(0.25, 3.0))))

    assert texts(made)[0].startswith("Worse: the held-out loss rose")


def test_no_text_leaves_the_picture_or_becomes_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=12, result=None)
    (run.attempts / "1").mkdir(parents=True)
    keep_end(run.attempts / "1", Ended(False, f"{HOSTILE[0]} {HOSTILE[1]} " + "a long message " * 20))

    made = picture(run)

    verdict = [text for text in texts(made) if text.startswith(("Failed", "a long", "message"))]
    assert "<script>alert(1)</script>" in texts(made)[0]
    assert len(verdict) > 2
    # 10 units of a wide letter, from the margin on.
    assert all(20 + 10 * len(text) <= WIDTH for text in verdict)


@pytest.mark.parametrize("missing", [False, True])
def test_the_command_writes_it_where_it_is_wanted(tmp_path: Path, missing: bool) -> None:
    run, svg = make_run(tmp_path / "run"), tmp_path / ("none" if missing else "") / "run.svg"

    done = CliRunner().invoke(app, ["report", str(run.path), "--svg", str(svg)])

    if missing:
        assert "cannot be written" in str(done.exception.problems[0])  # type: ignore[union-attr]
    else:
        assert done.stdout.splitlines() == [str(run.path / "report.html"), str(svg)]
        assert svg.read_text().startswith("<svg ")
