"""The facts that a plan is made from, and how they are found."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastft.data.sources import count_training_rows, evaluation_source
from fastft.probe.base_model import BaseModel, find_base_model
from fastft.probe.device import Device, find_device
from fastft.probe.software import installed
from fastft.recipe.loader import LoadedRecipe


@dataclass(frozen=True)
class Facts:
    """What the plan is made from besides the recipe.

    `train_examples`, `eval_examples`: rows in the data, None where they cannot be counted here.
    `lengths`: tokens of each training example, None before the rows are tokenized.
    `free_disk_bytes`: free space where runs are written.
    """

    device: Device
    installed: Mapping[str, str]
    base_model: BaseModel
    train_examples: int | None
    eval_examples: int | None
    free_disk_bytes: int
    lengths: Sequence[int] | None = None


def find_facts(loaded: LoadedRecipe, runs_dir: Path) -> Facts:
    """What this machine and the data are, as far as it can be known without loading anything.

    Raises:
        MachineError: a local model that the recipe names is not there.
        DataError: a data file cannot be read.
    """
    recipe = loaded.recipe
    train_examples, eval_examples = example_counts(loaded)
    return Facts(
        device=find_device(),
        installed=installed(),
        base_model=find_base_model(recipe.model.id, recipe.model.revision, loaded.folder, loaded.where("model.id")),
        train_examples=train_examples,
        eval_examples=eval_examples,
        free_disk_bytes=shutil.disk_usage(_existing(runs_dir)).free,
    )


def example_counts(loaded: LoadedRecipe) -> tuple[int | None, int | None]:
    """Training and held-out rows in the data; None where only the Hub could tell."""
    data = loaded.recipe.data
    trained, held_out = count_training_rows(data, loaded.folder), evaluation_source(data)
    if held_out is not None:
        return trained, held_out.count(loaded.folder)
    if data.eval_fraction is None or trained is None:
        return trained, None
    everything = count_training_rows(data.model_copy(update={"eval_fraction": None}), loaded.folder)
    return trained, None if everything is None else everything - trained


def _existing(folder: Path) -> Path:
    """The nearest folder around `folder` that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder
