"""Labels and preferences in two processes: the losses, figures and weights of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastft.runs.directory import RunDir
from tests.engine.plain.test_preference import verdicts
from tests.engine.test_ranks import environment, finish, start, wait_for
from tests.engine.tiny import events, make_rows, write_recipe, write_rows

# 26 or 27 rows, 8 a step: in the last step of each epoch the second process has no row for one micro-batch.
CHANGES: dict[str, Any] = {
    "model.engine": "transformers",
    "data.eval": "eval.jsonl",
    "train.per_device_train_batch_size": 1,
    "train.effective_batch_size": 8,
    "train.eval_strategy": "epoch",
    "train.learning_rate": 5e-3,
    "lora.lora_dropout": 0.0,
}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"classification.multi_label": True, "classification.class_weights": "balanced"},
    "preference": {},
}


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with one or two labels."""
    texts = [row["messages"][0]["content"] for row in make_rows(count, seed)]
    names = ("red", "blue", "green")
    return [{"text": text, "labels": sorted({names[n % 3], names[n % 2]})} for n, text in enumerate(texts)]


def recipe(folder: Path, model: Path, task: str, name: str) -> Path:
    written = write_recipe(folder, model, {**CHANGES, **TASKS[task]}, name)
    more = '[preference]\nloss = "kto"\n' if task == "preference" else ""
    written.write_text(f'task = "{task}"\n{written.read_text()}{more}')
    return written


def figures(run: RunDir) -> list[float]:
    """The losses, gradients and rewards of each step, and what each evaluation found."""
    found = []
    for line in events(run):
        if line["event"] == "step":
            found += [line["loss"], line["grad_norm"], line["tokens"], line["examples"], *line["rewards"].values()]
        else:
            found += [line[name] for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_margin") if name in line]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_learn_what_one_learns(model: Path, tmp_path: Path, task: str) -> None:
    """Only this catches a row that no rank learns, or two do: its loss is a part of a mean over all ranks."""
    make = labelled if task == "classification" else verdicts
    write_rows(tmp_path / "train.jsonl", make(27))
    write_rows(tmp_path / "eval.jsonl", make(7, seed=5))
    alone, two = (recipe(tmp_path, model, task, name) for name in ("alone", "two"))
    command = [sys.executable, "-m", "fastft", "run", str(alone)]
    subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, check=True, timeout=400)

    if task == "preference":  # whose rewards go on between two lines
        processes = start(two, 2)
        wait_for(processes[0], "step 5/")
        processes[1].kill()
        assert finish(processes, 60)[0][0] == 4
    codes, errors = finish(start(two, 2))

    assert codes == [0, 0], errors
    runs = [RunDir(tmp_path / "runs" / one.stem) for one in (alone, two)]
    # Sums in float32 in another order.
    assert figures(runs[1]) == pytest.approx(figures(runs[0]), abs=1e-4)
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in runs)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
