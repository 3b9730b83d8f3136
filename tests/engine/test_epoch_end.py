"""A stop or a kill around the end of an epoch loses no evaluation: model, metrics and best checkpoint are the same."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from fastft.engine.trainer import RunTrainer
from fastft.errors import Interrupted, TrainingError
from tests.engine.tiny import Ran, SignalAt, events, make_rows, run, write_recipe, write_rows

# 3 steps an epoch; an evaluation and a checkpoint at the end of each, or after every third step. Few rows are learnt by
# heart, so that the loss on other rows rises in the end and stops the run early.
CHANGES: dict[str, Any] = {
    "data.eval": "eval.jsonl",
    "lora.r": 16,
    "lora.lora_dropout": 0.1,
    "train.learning_rate": 3e-2,
    "train.lr_scheduler_type": "constant",
    "train.num_train_epochs": 20,
    "train.load_best_model_at_end": True,
    "train.early_stopping_patience": 2,
}
BY_EPOCH = {"train.eval_strategy": "epoch", "train.save_strategy": "epoch", "train.save_steps": None}
BY_STEPS = {"train.eval_strategy": "steps", "train.eval_steps": 3, "train.save_steps": 3}
WAYS = {"epoch": BY_EPOCH, "steps": BY_STEPS}


def write(folder: Path, model: Path, way: str, name: str) -> Path:
    write_rows(folder / "train.jsonl", make_rows(12))
    write_rows(folder / "eval.jsonl", make_rows(8, seed=5))
    return write_recipe(folder, model, {**CHANGES, **WAYS[way]}, name)


def outcome(ran: Ran) -> dict[str, Any]:
    """All of a run that must not depend on where it was stopped; times and memory do."""
    clock = ("seconds", "runtime", "time", "per_second", "memory_bytes")
    return {
        "lines": [
            {key: value for key, value in line.items() if not key.endswith(clock)} for line in events(ran.folder)
        ],
        "adapter": (ran.folder.adapter / "adapter_model.safetensors").read_bytes(),
        "best": int(Path(ran.result["best_checkpoint"]).name.removeprefix("step-")),
        "loss": ran.result["eval_loss"],
        "steps": ran.result["steps"],
    }


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folders = {way: tmp_path_factory.mktemp(way) for way in WAYS}
    return {way: outcome(run(write(folder, model, way, "whole"))) for way, folder in folders.items()}


@pytest.mark.parametrize("way", WAYS)
def test_the_undisturbed_run_is_stopped_early_and_its_best_checkpoint_is_not_the_last(
    undisturbed: dict[str, dict[str, Any]], way: str
) -> None:
    assert undisturbed[way]["steps"] < 60
    assert undisturbed[way]["best"] == undisturbed[way]["steps"] - 6


# Relative to the step of the best evaluation. Each step is also shown before its evaluation begins.
@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 3, 5])
@pytest.mark.parametrize("way", WAYS)
def test_a_stop_at_any_step_around_the_end_of_an_epoch_changes_nothing(
    model: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]], way: str, offset: int
) -> None:
    recipe = write(tmp_path, model, way, "stopped")
    step = undisturbed[way]["best"] + offset

    with pytest.raises(Interrupted):
        run(recipe, shown=SignalAt(f"step {step}/", signal.SIGTERM))

    assert outcome(run(recipe, resume=True)) == undisturbed[way]


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_within_an_evaluation_saves_at_once_and_the_evaluation_is_made_again(
    model: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, step, begin = write(tmp_path, model, way, "stopped"), undisturbed[way]["best"], RunTrainer.evaluate

    def signalled(trainer: RunTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        if trainer.state.global_step == step:
            signal.raise_signal(signal.SIGTERM)
        return begin(trainer, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "evaluate", signalled)
    with pytest.raises(Interrupted, match="after a checkpoint"):
        run(recipe)
    monkeypatch.undo()

    assert f"step {step + 1}/" not in (recipe.parent / "runs/stopped/attempts/1/log.txt").read_text()
    assert outcome(run(recipe, resume=True)) == undisturbed[way]


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_between_the_checkpoint_and_its_evaluation_loses_neither(
    model: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation was logged, the checkpoint that knows of it was not written: its line must not stand twice."""
    recipe, step, save = write(tmp_path, model, way, "stopped"), undisturbed[way]["best"], RunTrainer._save_checkpoint

    def killed(trainer: RunTrainer, *args: Any) -> None:
        if trainer.state.global_step == step:
            raise MemoryError("as good as a kill")
        save(trainer, *args)

    monkeypatch.setattr(RunTrainer, "_save_checkpoint", killed)
    with pytest.raises(TrainingError):
        run(recipe)
    monkeypatch.undo()

    assert outcome(run(recipe, resume=True)) == undisturbed[way]


def test_a_kill_before_the_first_checkpoint_changes_no_random_number(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The continued run does not measure the untrained model again, which takes random numbers too."""
    changes = {**BY_STEPS, "train.num_train_epochs": 2}
    write(tmp_path, model, "steps", "rows")
    whole = outcome(run(write_recipe(tmp_path, model, {**CHANGES, **changes}, "whole")))
    recipe = write_recipe(tmp_path, model, {**CHANGES, **changes}, "killed")

    def killed(*_: Any) -> None:
        raise MemoryError("as good as a kill")

    monkeypatch.setattr(RunTrainer, "_save_checkpoint", killed)
    with pytest.raises(TrainingError):
        run(recipe)
    monkeypatch.undo()

    assert outcome(run(recipe)) == whole
