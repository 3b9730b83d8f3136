"""`fastft compare` on made-up runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.errors import UsageError
from fastft.runs.comparison import compare_runs
from fastft.runs.directory import Settings
from fastft.runs.manifest import Manifest
from fastft.runs.result import BeforeAfter, ExactMatch, MeasuredRows, PairedBatch, Result, ShownAnswer
from tests.report.made_up import HOSTILE, RESULT, make_run
from tests.report.test_page import parsed


def result(right: int, loss: float, *, rows: int = 50, batch: int = 10) -> Result:
    """One that answers the first `right` of its rows, with a held-out loss near `loss`."""
    answers = tuple(ShownAnswer(f"question {n}", "yes", "no", "yes" if n < right else HOSTILE[0]) for n in range(rows))
    batches = tuple(PairedBatch(30.0, batch * loss + n % 3 / 10, batch) for n in range(20))
    values = tuple(float(n < right) for n in range(rows))
    return dataclasses.replace(
        RESULT,
        eval_loss=BeforeAfter(3.0, sum(each.after for each in batches) / 20 / batch),
        eval_batches=batches,
        exact_match=ExactMatch(rows, 0, right, answers[0], answers),
        measures=(MeasuredRows("exact_match", (0.0,) * rows, values), MeasuredRows("answer_tokens", (), values)),
    )


def with_held_out(folder: Path, made: Result | None, sha256: str = "ee", **settings: Any) -> Path:
    run = make_run(folder, result=made)
    manifest = run.require(Manifest)
    run.write(dataclasses.replace(manifest, data=dataclasses.replace(manifest.data, eval_sha256=sha256)))
    known = run.require(Settings)
    changed = {key: dataclasses.replace(known.settings[key], value=value) for key, value in settings.items()}
    run.write(dataclasses.replace(known, settings=known.settings | changed))
    return folder


def test_the_first_line_says_which_run_is_better_and_how_sure_that_is(tmp_path: Path) -> None:
    one = with_held_out(tmp_path / "one", result(10, 0.5), **{"train.learning_rate": 1e-4})
    two = with_held_out(tmp_path / "two", result(40, 0.3))

    done = CliRunner().invoke(app, ["compare", str(one), str(two), "--price-per-hour", "2"], env={"COLUMNS": "100"})

    lines = done.stdout.splitlines()
    first = "B (two) is better than A (one): exact match moved by +60 points on 50 held-out rows (95 % interval of the"
    assert lines[0].startswith(first)
    rows = {line[:20].strip(): line[20:].split() for line in lines}
    assert rows["exact match"] == ["10", "of", "50", "40", "of", "50"]
    assert rows["train.learning_rate"] == ["0.0001", "0.002"]
    assert rows["cost"] == ["0.17", "0.17"]
    assert rows["held-out exact match"][-1] == "better"
    assert "train.seed" not in done.stdout


def test_the_other_way_round_it_is_worse(tmp_path: Path) -> None:
    one, two = (with_held_out(tmp_path / f"{right}", result(right, 0.5)) for right in (40, 10))

    made = compare_runs([one, two])

    assert made.verdict.startswith("B (10) is worse than A (40): exact match moved by -60 points")
    (pair,) = made.pairs
    by_name = {each.measure.name: each for each in pair.measures}
    assert by_name["exact_match"].before == 0.8, "of the trained model of A, not of the untrained one"
    assert by_name["exact_match"].word == "worse"
    assert by_name["answer_tokens"].word == "less"


def test_runs_that_answer_alike_cannot_be_told_apart(tmp_path: Path) -> None:
    one, two = (with_held_out(tmp_path / name, result(25, 0.5)) for name in "ab")

    assert compare_runs([one, two]).verdict.startswith("Cannot tell B (b) from A (a): exact match is the same on 50")


def test_other_held_out_rows_are_not_compared(tmp_path: Path) -> None:
    one = with_held_out(tmp_path / "one", result(10, 0.5))
    two = with_held_out(tmp_path / "two", result(40, 0.3, rows=49), sha256="ff")

    made = compare_runs([one, two])

    assert made.verdict == "Cannot compare B (two) with A (one): their held-out rows differ"
    assert made.pairs[0].measures == []
    assert made.surroundings["data.eval_sha256"] == ("ee", "ff")


def test_answers_to_the_same_questions_are_compared_without_the_losses_of_other_rows(tmp_path: Path) -> None:
    one = with_held_out(tmp_path / "one", result(10, 0.5))
    two = with_held_out(tmp_path / "two", result(40, 0.3), sha256="ff")

    measures = {each.measure.name for each in compare_runs([one, two]).pairs[0].measures}

    assert measures == {"exact_match", "answer_tokens"}


def test_losses_of_other_micro_batches_have_no_interval(tmp_path: Path) -> None:
    one = with_held_out(tmp_path / "one", result(10, 0.5))
    two = with_held_out(tmp_path / "two", result(40, 0.3, batch=20))

    loss = compare_runs([one, two]).pairs[0].measures[0]

    assert (loss.measure.name, loss.interval) == ("eval_loss", None)


def test_a_run_that_did_not_finish_is_shown_and_not_judged(tmp_path: Path) -> None:
    one = with_held_out(tmp_path / "one", result(10, 0.5))
    two = with_held_out(tmp_path / "two", None)

    done = CliRunner().invoke(app, ["compare", str(one), str(two)], env={"COLUMNS": "100"})

    assert done.stdout.startswith("Cannot compare B (two) with A (one): B (two) did not finish")
    assert "0.2500 so far" in done.stdout


def test_of_several_runs_each_is_beside_the_first(tmp_path: Path) -> None:
    rights = {"a": 25, "b": 45, "c": 5, "d": 25}
    paths = [with_held_out(tmp_path / name, result(right, 0.5)) for name, right in rights.items()]

    made = compare_runs(paths)

    assert made.verdict == "Beside A (a): B better; C worse; D no clear difference"


def test_the_page_is_safe_and_has_curves_over_tokens(tmp_path: Path) -> None:
    one, two = (with_held_out(tmp_path / f"{right}", result(right, 0.5)) for right in (40, 10))
    page = tmp_path / "page.html"

    done = CliRunner().invoke(app, ["compare", str(one), str(two), "--html", str(page)])

    made = parsed(page)
    assert done.exit_code == 0
    assert (made.strange, made.open) == ([], [])
    assert made.of("h1")[0].startswith("B (10) is worse than A (40)")
    assert made.of("text").count("trained tokens") == 2
    assert HOSTILE[0] in made.text
    assert page.stat().st_size < 200_000


def test_json_has_each_figure(tmp_path: Path) -> None:
    one, two = (with_held_out(tmp_path / f"{right}", result(right, 0.5)) for right in (10, 40))

    made = json.loads(CliRunner().invoke(app, ["compare", str(one), str(two), "--json"]).stdout)

    assert [run["exact_match"] for run in made["runs"]] == [10, 40]
    (pair,) = made["pairs"]
    assert pair["word"] == "better"
    match = next(each for each in pair["measures"] if each["name"] == "exact_match")
    assert (match["first"], match["other"], match["rows"]) == (0.2, 0.8, 50)
    assert 0.4 < match["low"] < 0.6 < match["high"] < 0.8


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["one"], "needs 2 to 6 runs (got 1)"),
        (["one", "one"], "is named twice"),
        (["one", "."], "is no folder of a run"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, names: list[str], wrong: str) -> None:
    make_run(tmp_path / "one")

    with pytest.raises(UsageError) as caught:
        compare_runs([tmp_path / name for name in names])
    assert wrong in str(caught.value)
