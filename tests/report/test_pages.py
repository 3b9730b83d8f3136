from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from fastft.probe.installation import Diagnosis
from fastft.report.installation import print_diagnoses
from fastft.report.plan import plan_page
from fastft.report.result import print_result
from fastft.runs.result import BeforeAfter, ExactMatch, Result, ShownAnswer
from tests.golden import RECIPES, golden_plan

RESULT = Result(
    finished="2026-11-25T12:00:00+00:00",
    steps=60,
    train_loss=0.5,
    eval_loss=BeforeAfter(3.0, 0.25),
    exact_match=ExactMatch(50, 0, 43, ShownAnswer("Help [me]!", "{}", "[b]Hello[/b]", "{}")),
    total_seconds=300.0,
    peak_memory_bytes=2 * 1024**3,
    train_rows=480,
    best_checkpoint=None,
    trained_weights=4884480,
    weights=139400064,
    train_tokens_seen=18500,
    train_seconds=185.0,
    out_of_memory=(),
    weights_folder="runs/quickstart/adapter",
    forecast={},
)


def printed(result: Result) -> str:
    stream = io.StringIO()
    print_result(Console(file=stream, width=80), result, "runs/quickstart")
    return stream.getvalue()


def test_a_result_shows_what_changed_and_where_the_weights_are() -> None:
    text = printed(RESULT)

    for part in ("0 of 50 (0 %)", "43 of 50 (86 %)", "3.0000", "0.2500", "3 min 05 s, 100 tokens/s", "4,884,480"):
        assert part in text
    assert "weights: runs/quickstart/adapter" in text


def test_an_answer_is_shown_as_it_was_written() -> None:
    assert "[b]Hello[/b]" in printed(RESULT)


def test_a_run_that_made_the_model_worse_says_so_in_its_first_line() -> None:
    worse = dataclasses.replace(RESULT, eval_loss=BeforeAfter(0.25, 3.0))

    assert printed(worse).startswith("Worse: the held-out loss rose from 0.2500 to 3.0000")
    assert "worse" not in printed(RESULT)


def test_a_result_without_held_out_rows_has_no_rows_for_them() -> None:
    text = printed(dataclasses.replace(RESULT, eval_loss=BeforeAfter(None, None), exact_match=None))

    assert "held-out" not in text


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_plan_page_cuts_nothing_off(recipe: Any, width: int) -> None:
    stream = io.StringIO()

    Console(file=stream, width=width).print(plan_page(golden_plan(recipe), with_calls=True), crop=False)

    text = stream.getvalue()
    assert "…" not in text
    assert "    gradient_accumulation_steps=" in text
    for line in text.splitlines():
        assert len(line.rstrip()) <= width or line.startswith("    ")


def test_findings_end_with_what_they_come_to(capsys: pytest.CaptureFixture[str]) -> None:
    print_diagnoses(
        [Diagnosis("torch", "broken", "not installed", "pip install torch"), Diagnosis("disk", "ok", "1 GiB")]
    )
    broken = capsys.readouterr().out
    print_diagnoses([Diagnosis("disk", "ok", "1 GiB")])
    sound = capsys.readouterr().out

    assert "pip install torch" in broken
    assert broken.splitlines()[-1] == "1 broken"
    assert sound.splitlines()[-1] == "ready to train"
