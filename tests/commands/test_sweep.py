"""`fastft sweep`: its decisions, its page and its files, on made-up runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from fastft.errors import UsageError
from fastft.recipe.loader import load
from fastft.report.sweep import (
    FILE,
    as_json,
    best_beside_second,
    best_of,
    print_sweep,
    sweep_page,
    verdict_of_sweep,
)
from fastft.runs.directory import RunDir, create_run_dir
from fastft.runs.metrics import EvaluationMetrics, MetricsFile, StepMetrics
from fastft.runs.result import BeforeAfter
from fastft.runs.state import Ended, keep_end
from fastft.runs.sweep import Failed, Sweep, Trial, ranked, read_trial, rungs, survivors, sweep_folder
from tests.golden import RECIPES
from tests.report.made_up import RESULT
from tests.report.test_page import parsed

RECIPE = next(path for path in RECIPES if path.stem == "quickstart")
TRIALS = tuple((f"train.learning_rate={rate}", f"lora.r={rank}") for rate in ("1e-4", "1e-3") for rank in (8, 16))
SWEEP = Sweep(str(RECIPE), "ab", TRIALS, stop_early=True)


def at(number: int, *losses: tuple[float, float], **more: object) -> Trial:
    return Trial(number, (f"lora.r={number}",), None, "stopped", losses, **more)  # type: ignore[arg-type]


def made(folder: Path, number: int, losses: dict[int, float], *, end: float | None = None, why: str = "") -> RunDir:
    """A run of a trial with held-out losses by step, of 16; finished with `end`, or ended with `why`."""
    run = create_run_dir(folder, load(RECIPE, TRIALS[number]))
    metrics = MetricsFile(run.metrics)
    metrics.append(EvaluationMetrics(0, {"eval_loss": 9.0}))
    last = 16 if end is not None else max(losses, default=0)
    for step in range(1, last + 1):
        metrics.append(StepMetrics(step, 16, step / 16, 2.0, 1e-3, 1.0, 100, 4, 1.0, 2**30))
        if step in losses:
            metrics.append(EvaluationMetrics(step, {"eval_loss": losses[step]}))
    if end is not None:
        run.write(dataclasses.replace(RESULT, eval_loss=BeforeAfter(9.0, end)))
    else:
        (run.attempts / "1").mkdir(parents=True)
        keep_end(run.attempts / "1", Ended(not why, why or "stopped after optimizer step 4"))
    return run


def read(folder: Path, known: Sweep = SWEEP) -> list[Trial]:
    return [read_trial(n, each, folder, load(RECIPE, each), known) for n, each in enumerate(TRIALS)]


@pytest.mark.parametrize(
    ("count", "shares"),
    [(1, [1]), (2, [0.5, 1]), (6, [0.25, 0.5, 1]), (8, [0.125, 0.25, 0.5, 1]), (99, [0.125, 0.25, 0.5, 1])],
)
def test_halving_compares_after_shares_that_double(count: int, shares: list[float]) -> None:
    assert rungs(count, stop_early=True) == shares
    assert rungs(count, stop_early=False) == [1]


def test_the_better_half_goes_on_by_the_loss_at_that_share_and_no_later_one() -> None:
    trials = [
        at(0, (0.25, 3.0)),
        at(1, (0.25, 1.0), (0.5, 8.0)),
        at(2, (0.25, 2.0)),
        at(3, (0.25, math.nan)),
        at(4, (0.25, 0.5), failed=True),
    ]

    assert [trial.number for trial in survivors(trials, 0.25)] == [0, 1, 2]
    assert [trial.number for trial in survivors(trials[:4], 0.25)] == [1, 2]


def test_runs_are_ranked_by_how_far_they_came_and_then_by_their_loss() -> None:
    trials = [at(0, (0.25, 0.1)), at(1, (1.0, 3.0)), at(2), at(3, (1.0, 2.0)), at(4, (1.0, math.inf))]

    assert [trial.number for trial in ranked(trials)] == [3, 1, 0, 2, 4]


def test_how_far_each_run_is_stands_in_its_folder(tmp_path: Path) -> None:
    made(tmp_path, 0, {4: 3.0, 8: 2.0})
    made(tmp_path, 1, {4: 2.5}, end=1.5)
    made(tmp_path, 2, {}, why="the run blew up")
    known = dataclasses.replace(SWEEP, failed=(Failed(TRIALS[2], 1, "the run blew up"),))

    first, second, third, fourth = read(tmp_path, known)

    assert (first.state, first.losses) == ("stopped", ((0.25, 3.0), (0.5, 2.0)))
    assert [first.is_at(share) for share in (0.25, 0.5, 1)] == [True, True, False]
    assert (second.state, second.loss, second.is_at(1)) == ("finished", 1.5, True)
    assert (third.failed, third.why, third.is_at(0.25)) == (True, "the run blew up", True)
    assert (fourth.run, fourth.is_at(0.25)) == (None, False)


def test_a_run_that_was_killed_is_made_again(tmp_path: Path) -> None:
    run = made(tmp_path, 0, {4: 3.0})
    (run.attempts / "1" / Ended.FILE).unlink()

    trial = read(tmp_path)[0]

    assert (trial.state, trial.failed) == ("failed", False)
    assert [trial.is_at(share) for share in (0.25, 0.5)] == [True, False]


def test_the_same_command_finds_its_folder_and_another_one_makes_its_own(tmp_path: Path) -> None:
    folder, known = sweep_folder(tmp_path, RECIPE, SWEEP)
    assert (folder, known) == (tmp_path / "quickstart-sweep", None)
    folder.mkdir()
    from fastft.files.records import write_record

    write_record(folder / Sweep.FILE, dataclasses.replace(SWEEP, failed=(Failed(TRIALS[2], 1, "x"),)))

    again = sweep_folder(tmp_path, RECIPE, SWEEP)
    other = sweep_folder(tmp_path, RECIPE, dataclasses.replace(SWEEP, stop_early=False))

    assert again[0] == folder
    assert again[1] is not None
    assert again[1].failed[0].why == "x"
    assert other == (tmp_path / "quickstart-sweep-2", None)


@pytest.fixture
def three(tmp_path: Path) -> list[Trial]:
    made(tmp_path, 0, {4: 3.0}, end=2.0)
    made(tmp_path, 1, {4: 2.5}, end=1.5)
    made(tmp_path, 2, {}, why="the <b>run</b> blew up")
    return read(tmp_path)


def test_the_page_and_the_table_begin_with_the_best_run(three: list[Trial], tmp_path: Path) -> None:
    first = "Best of 4 runs: train.learning_rate=1e-4 lora.r=16, with a held-out loss of 1.5000"
    compared = best_beside_second(three)

    assert verdict_of_sweep(three, compared).startswith(first)
    (tmp_path / FILE).write_text(sweep_page(tmp_path, three), encoding="utf-8")
    page = parsed(tmp_path / FILE)
    assert page.strange == []
    assert page.of("h1")[0].startswith(first)
    rows = page.of("td")
    assert rows[:2] == ["1e-4", "16"]
    assert "the <b>run</b> blew up" in page.text
    assert {"optimizer steps done (%)", "loss (nats a token)"} <= set(page.of("text"))
    console = Console(record=True, width=120)
    print_sweep(console, three, compared)
    lines = console.export_text().splitlines()
    assert lines[0].startswith(first)
    assert [line.split()[:4] for line in lines if line.startswith(("1 ", "2 "))] == [
        ["1", "1e-4", "16", "quickstart-2"],
        ["2", "1e-4", "8", "quickstart"],
    ]


def test_as_json_it_has_every_run_with_its_state(three: list[Trial], tmp_path: Path) -> None:
    said = json.loads(json.dumps(as_json(tmp_path, three, best_beside_second(three), tmp_path / "best.toml")))

    assert [run["state"] for run in said["runs"]] == ["finished", "finished", "failed", None]
    assert said["runs"][0]["eval_loss"] == 1.5
    assert said["best_recipe"] == str(tmp_path / "best.toml")


def test_without_a_finished_run_nothing_is_best(tmp_path: Path) -> None:
    made(tmp_path, 0, {4: 3.0})
    trials = read(tmp_path)

    assert best_of(trials) is None
    (tmp_path / FILE).write_text(sweep_page(tmp_path, trials), encoding="utf-8")
    assert parsed(tmp_path / FILE).of("h1") == ["None of 4 runs has finished."]


def test_a_recipe_that_holds_nothing_out_cannot_be_swept(tmp_path: Path) -> None:
    from fastft.commands.sweep import SweepRequest, sweep_in_terminal

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\nid = "org/model"\n[data]\ntrain = "rows.jsonl"\n')

    with pytest.raises(UsageError, match="holds nothing out"):
        sweep_in_terminal(recipe, SweepRequest(("lora.r=8,16",), None, False, tmp_path / "runs"), as_json=False)
    assert not (tmp_path / "runs").exists()
