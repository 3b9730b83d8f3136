"""A run again: the same losses to the last bit, or a refusal before training; and what a run measures of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastft.commands.reproduce import reproduce_in_terminal
from fastft.errors import DataError
from fastft.runs.directory import RunDir
from tests.engine.tiny import events, make_rows, run, write_recipe, write_rows

CHANGES = {
    "data.eval_fraction": 0.2,
    "eval.exact_match": True,
    "eval.max_new_tokens": 4,
    "train.num_train_epochs": 1,
    "train.save_strategy": "no",
    "train.save_steps": None,
    "train.save_total_limit": None,
}


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run on 24 rows."""
    folder = tmp_path_factory.mktemp("reproduce")
    return run(write_recipe(folder, model, CHANGES)).folder


def test_a_run_has_the_same_losses_bit_by_bit(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce_in_terminal(finished.path, None)

    said = capsys.readouterr().out.strip().splitlines()[-1]
    again = finished.path.with_name(f"{finished.path.name}-2")
    count = len(events(finished))
    assert said == f"Reproduced bit by bit: all {count} losses of {again} are the same"
    one, two = (each.result for each in (finished, RunDir(again)))
    assert one is not None
    assert two is not None
    assert (one.measures, one.general, one.eval_batches) == (two.measures, two.general, two.eval_batches)


def test_answers_and_general_questions_are_measured(finished: RunDir) -> None:
    result = finished.result

    assert result is not None
    names = {rows.name: len(rows.after) for rows in result.measures}
    assert result.exact_match is not None
    rows = result.exact_match.rows
    assert names == {
        **dict.fromkeys(("exact_match", "token_f1", "rouge_l", "stop_rate", "answer_tokens"), rows),
        "regression": 100,
    }
    assert all(len(each.before) == len(each.after) for each in result.measures)
    assert len(result.general) == 100


def test_other_rows_are_refused_before_training(finished: RunDir) -> None:
    write_rows(finished.path.parents[1] / "train.jsonl", make_rows(24, seed=9))

    with pytest.raises(DataError, match=r"changed since that run: data\.train_sha256"):
        reproduce_in_terminal(finished.path, None)
    assert not finished.path.with_name(f"{finished.path.name}-3").exists()
