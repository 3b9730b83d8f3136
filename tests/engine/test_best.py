"""Early stopping and load_best_model_at_end end with the weights of the best evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir
from tests.engine.tiny import Ran, events, make_rows, run, stop, write_recipe, write_rows

# Few rows, learnt by heart: the loss on other rows falls at first and then rises.
CHANGES = {
    "data.eval": "eval.jsonl",
    "lora.r": 16,
    "train.num_train_epochs": 30,
    "train.eval_strategy": "steps",
    "train.eval_steps": 2,
    "train.save_steps": 2,
    "train.save_total_limit": 2,
    "train.load_best_model_at_end": True,
    "train.early_stopping_patience": 3,
}


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    write_rows(tmp_path / "train.jsonl", make_rows(8))
    write_rows(tmp_path / "eval.jsonl", make_rows(8, seed=5))
    return write_recipe(tmp_path, model, CHANGES)


def evaluations(folder: RunDir) -> list[tuple[int, float]]:
    """Each evaluation within training: (step, loss)."""
    found = [(event["step"], event["eval_loss"]) for event in events(folder) if event["event"] == "evaluation"]
    return found[1:-1]  # without those before and after training


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_weights_are_those_of_the_best_evaluation(recipe: Path) -> None:
    done = run(recipe)
    measured = evaluations(done.folder)
    best_step, best_loss = min(measured, key=lambda pair: pair[1])
    assert measured[-1][0] == done.result["steps"] < 60, "not stopped early"
    assert [step for step, _ in measured if step > best_step] == [best_step + 2, best_step + 4, best_step + 6]
    best = done.folder.checkpoints / f"step-{best_step}"
    assert done.result["best_checkpoint"] == str(best)
    written, saved = adapter(done.folder.adapter), adapter(best)
    assert all(torch.equal(value, written[name]) for name, value in saved.items())
    assert done.result["eval_loss"]["after"] == best_loss
    assert [step for step, _ in checkpoints(done.folder)] == [done.result["steps"], best_step]


def test_a_run_stopped_while_its_patience_is_used_up_ends_at_the_same_step(recipe: Path) -> None:
    whole = run(recipe)
    expected, best = whole.result, adapter(whole.folder.adapter)
    shutil.rmtree(whole.folder.path)
    stop(recipe, expected["steps"] - 1)
    resumed = run(recipe, resume=True)
    assert resumed.result["steps"] == expected["steps"]
    assert resumed.result["eval_loss"] == expected["eval_loss"]
    written = adapter(resumed.folder.adapter)
    assert all(torch.equal(value, written[name]) for name, value in best.items())


def ends_the_same(recipe: Path, whole: Ran) -> None:
    """Whether `whole`, without its result, ends as it did before."""
    expected, best = whole.result, adapter(whole.folder.adapter)
    (whole.folder.path / "result.json").unlink()
    shutil.rmtree(whole.folder.adapter)
    resumed = run(recipe, resume=True)
    assert resumed.result["steps"] == expected["steps"]
    written = adapter(resumed.folder.adapter)
    assert all(torch.equal(value, written[name]) for name, value in best.items())


def test_a_run_killed_after_it_was_stopped_early_is_not_trained_further(recipe: Path) -> None:
    ends_the_same(recipe, run(recipe))


def test_the_best_checkpoint_is_found_after_the_folder_has_moved(recipe: Path) -> None:
    whole = run(recipe)
    moved = recipe.parent / "moved"
    moved.mkdir()
    for entry in list(recipe.parent.iterdir()):
        if entry != moved:
            entry.rename(moved / entry.name)
    ends_the_same(moved / recipe.name, Ran(RunDir(moved / "runs" / "tiny"), whole.shown))
