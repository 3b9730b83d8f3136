"""The schedule against the installed Trainer's own code: its loader, accelerate's sharding, its arithmetic."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from trl import pack_dataset

from fastft.planning.batching import packed_rows
from fastft.planning.schedule import make_schedule
from fastft.recipe.model import TrainSection

CAPACITY = 64
SEEDED = random.Random(4)  # noqa: S311 -- lengths, no secrets


def grid() -> list[dict[str, Any]]:
    """400 combinations: rows, batch, accumulation, epochs or steps, world size, packing; drawn from usual ranges."""
    drawn = []
    for number in range(400):
        rows = SEEDED.choice([1, 2, 7, 64, 100, 479, 480, 1000, 2503, 10_000])
        by_steps = SEEDED.random() < 0.3
        drawn.append(
            {
                "rows": min(rows, 2503) if number % 4 == 0 else rows,
                "batch": SEEDED.choice([1, 2, 3, 4, 8, 16, 128]),
                "accumulation": SEEDED.choice([1, 2, 3, 8, 36]),
                "world": SEEDED.choice([1, 2, 3, 4]),
                "packing": number % 4 == 0,
                "epochs": None if by_steps else SEEDED.choice([0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 7.3]),
                "max_steps": SEEDED.choice([1, 10, 237, 1000]) if by_steps else None,
                "warmup_ratio": SEEDED.choice([0.0, 0.03, 0.1, 0.5]),
            }
        )
    return drawn


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A real Trainer; only its arithmetic is asked."""
    arguments = TrainingArguments(output_dir=str(tmp_path_factory.mktemp("trainer")), report_to="none", use_cpu=True)
    return Trainer(model=torch.nn.Linear(1, 1), args=arguments)


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    """As many lengths as the largest packed combination has rows."""
    return [SEEDED.randint(1, CAPACITY) for _ in range(2503)]


def loader(rows: int, batch: int, world: int) -> DataLoader[int]:
    """The first process's loader, as Trainer and accelerate make it."""
    whole = DataLoader(range(rows), batch_size=batch)  # type: ignore[arg-type]
    return prepare_data_loader(whole, num_processes=world, process_index=0, put_on_device=False)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def packed_count(lengths: list[int]) -> dict[int, int]:
    """Rows that TRL's own packing makes of the first 1, 2, 7, ... lengths."""
    return {}


def rows_after_packing(lengths: list[int], known: dict[int, int]) -> int:
    if len(lengths) not in known:
        made = pack_dataset(Dataset.from_dict({"input_ids": [[1] * length for length in lengths]}), CAPACITY, "bfd")
        known[len(lengths)] = len(made)
    return known[len(lengths)]


def test_the_grid_has_at_least_three_hundred_different_combinations() -> None:
    assert len({tuple(case.values()) for case in grid()}) >= 300


def test_every_combination_counts_as_the_installed_trainer_counts(
    trainer: Trainer, lengths: list[int], packed_count: dict[int, int], tmp_path: Path
) -> None:
    wrong = []
    for case in grid():
        chosen = lengths[: case["rows"]]
        rows = rows_after_packing(chosen, packed_count) if case["packing"] else case["rows"]
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            per_device_train_batch_size=case["batch"],
            gradient_accumulation_steps=case["accumulation"],
            num_train_epochs=case["epochs"] or 3.0,
            max_steps=case["max_steps"] or -1,
            warmup_steps=case["warmup_ratio"],
        )
        values = trainer.set_initial_training_values(arguments, loader(rows, case["batch"], case["world"]))
        _, per_epoch, _, _, _, micro_batches, max_steps = values

        made = make_schedule(
            examples=case["rows"],
            rows=len(packed_rows(chosen, CAPACITY)) if case["packing"] else case["rows"],
            tokens=None,
            eval_examples=None,
            batch=case["batch"],
            accumulation=case["accumulation"],
            devices=case["world"],
            train=TrainSection(
                per_device_train_batch_size=case["batch"],
                num_train_epochs=case["epochs"],
                max_steps=case["max_steps"],
                warmup_ratio=case["warmup_ratio"],
            ),
        )

        expected = (micro_batches, per_epoch, max_steps, arguments.get_warmup_steps(max_steps))
        found = (
            made.micro_batches_per_epoch,
            made.optimizer_steps_per_epoch,
            made.optimizer_steps,
            made.warmup_steps,
        )
        if found != expected:
            wrong.append((case, found, expected))
    assert wrong == []


@pytest.mark.parametrize(("rows", "batch", "world"), [(10, 4, 3), (11, 2, 4), (100, 8, 3), (1, 2, 2), (479, 16, 2)])
def test_every_process_really_draws_as_many_micro_batches(rows: int, batch: int, world: int) -> None:
    whole = DataLoader(range(rows), batch_size=batch)  # type: ignore[arg-type]
    drawn = {
        sum(1 for _ in prepare_data_loader(whole, num_processes=world, process_index=index, put_on_device=False))
        for index in range(world)
    }
    made = make_schedule(
        examples=rows,
        rows=rows,
        tokens=None,
        eval_examples=None,
        batch=batch,
        accumulation=1,
        devices=world,
        train=TrainSection(per_device_train_batch_size=batch),
    )

    assert drawn == {made.micro_batches_per_epoch}


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_evaluations_and_checkpoints_come_when_the_trainer_makes_them(strategy: str, tmp_path: Path) -> None:
    """A real training loop of a one-weight model; its log and folder are counted."""
    rows = [{"x": torch.tensor([1.0]), "labels": torch.tensor([1.0])} for _ in range(10)]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": ((self.weight * x - labels) ** 2).mean(), "logits": x}

    asked: dict[str, Any] = {"eval_strategy": strategy, "save_strategy": strategy}
    if strategy == "steps":
        asked |= {"eval_steps": 4, "save_steps": 3}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=3,
        num_train_epochs=2.5,
        **asked,
    )
    done = Trainer(model=Model(), args=arguments, train_dataset=rows, eval_dataset=rows)  # type: ignore[arg-type]
    done.train()

    made = make_schedule(
        examples=10,
        rows=10,
        tokens=None,
        eval_examples=10,
        batch=3,
        accumulation=1,
        devices=1,
        train=TrainSection(per_device_train_batch_size=3, num_train_epochs=2.5, **asked),
    )
    assert made.optimizer_steps == done.state.global_step
    assert made.evaluations == sum("eval_loss" in line for line in done.state.log_history)
    assert made.checkpoints == len(list(tmp_path.glob("checkpoint-*")))
