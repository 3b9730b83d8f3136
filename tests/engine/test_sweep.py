"""`fastft sweep` as its users start it, killed in the middle and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastft.errors import Interrupted
from fastft.recipe.loader import load
from fastft.runs.directory import RunDir
from fastft.stages.attempt import Start
from tests.engine.tiny import ROOT, events, make_rows, read_result, run, write_recipe, write_rows

CHANGES = {"data.eval": "eval.jsonl", "model.engine": "transformers"}


def started(recipe: Path) -> subprocess.Popen[str]:
    values = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(recipe.parent / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    values.pop("FASTFT_ENGINE", None)
    command = [sys.executable, "-m", "fastft", "sweep", recipe.name, "--set", "train.learning_rate=1e-2,1e-3", "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=recipe.parent, env=values, text=True, stdout=pipe, stderr=pipe)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    """Only processes show that the run of a killed sweep stops with a checkpoint, and that a second call continues."""
    write_rows(tmp_path / "eval.jsonl", make_rows(6, seed=5))
    recipe = write_recipe(tmp_path, model, CHANGES)
    sweep = started(recipe)
    assert sweep.stderr is not None
    for line in sweep.stderr:
        if line.startswith("step 3/"):
            sweep.kill()
            break
    sweep.communicate()
    first = RunDir(tmp_path / "runs" / "tiny-sweep" / "tiny")
    until = time.monotonic() + 60
    while not (first.attempts / "1" / "ended.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not first.is_finished
    assert "stopped by SIGTERM after a checkpoint" in (first.attempts / "1" / "ended.json").read_text()

    again = started(recipe)
    out, error = again.communicate(timeout=200)

    assert again.returncode == 0, error
    assert "• continuing runs/tiny-sweep: 2 runs" in error
    assert "continuing from step" in error
    said = json.loads(out)
    assert [run["state"] for run in said["runs"]] == ["finished", "finished"]
    assert said["runs"][0]["overrides"] == ["train.learning_rate=1e-2"]
    assert read_result(RunDir(tmp_path / said["runs"][0]["run"]))["eval_loss"]["after"] == said["runs"][0]["eval_loss"]
    best = load(tmp_path / said["best_recipe"])
    assert best.recipe.train.learning_rate == 1e-2
    assert (best.folder / str(best.recipe.data.train)).samefile(tmp_path / "train.jsonl")
    assert (tmp_path / "runs" / "tiny-sweep" / "sweep.html").read_text().startswith("<!doctype html>")


def test_a_run_that_ends_early_is_evaluated_there_and_goes_on_bit_by_bit(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "eval.jsonl", make_rows(6, seed=5))
    changes = {"data.eval": "eval.jsonl", "train.save_steps": 50, "train.num_train_epochs": 1}
    undisturbed = run(write_recipe(tmp_path, model, changes, name="undisturbed"))
    recipe = write_recipe(tmp_path, model, changes)

    with pytest.raises(Interrupted, match="stopped after optimizer step 3, as --until asks"):
        run(recipe, start=Start(until=0.5))
    folder = RunDir(tmp_path / "runs" / "tiny")
    assert [event["step"] for event in events(folder) if event["event"] == "evaluation"] == [0, 3]
    with pytest.raises(Interrupted, match="stopped after optimizer step 3"):
        run(recipe, start=Start(until=0.5))
    whole = run(recipe)

    assert whole.losses == undisturbed.losses
    assert whole.result["eval_loss"] == undisturbed.result["eval_loss"]
    saved = [ran.folder.adapter / "adapter_model.safetensors" for ran in (whole, undisturbed)]
    assert saved[0].read_bytes() == saved[1].read_bytes()
