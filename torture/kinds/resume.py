"""A stop at 7 points of 17 configurations: the resumed run is the undisturbed one, bit by bit."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

from torture.case import Case, Outcome
from torture.process import Child, command
from torture.subject import RUN, compare, copy, write_facts, write_subject

KIND = "resume"
POINTS = (1, 2, 4, 6, 7, 9, 11)
EVAL: dict[str, Any] = {"data.eval": "eval.jsonl", "train.eval_strategy": "steps", "train.eval_steps": 3}
EPOCH: dict[str, Any] = {"data.eval": "eval.jsonl", "train.eval_strategy": "epoch"}
BEST: dict[str, Any] = {"train.save_steps": 3, "train.load_best_model_at_end": True}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped by length": {"train.group_by_length": True},
    "packed": {"train.packing": True, "train.num_train_epochs": 6},
    "dropout": {"lora.lora_dropout": 0.1},
    "NEFTune noise": {"train.neftune_noise_alpha": 5.0},
    "accumulation": {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 2},
    "cosine with warm-up": {"train.lr_scheduler_type": "cosine", "train.warmup_steps": 3},
    "Adafactor": {"train.optim": "adafactor"},
    "SGD": {"train.optim": "sgd"},
    "gradient checkpointing": {"train.gradient_checkpointing": True},
    "lines every 5 steps": {"train.logging_steps": 5},
    "evaluation by steps": EVAL,
    "evaluation by epochs": EPOCH,
    "best by steps": {**EVAL, **BEST},
    "early stopping": {**EVAL, **BEST, "train.early_stopping_patience": 2, "train.learning_rate": 5e-2},
    "last 2 checkpoints": {"train.save_total_limit": 2},
    "all linear layers, rank-stabilised": {"lora.use_rslora": True, "lora.r": 16},
}


def prepare(shared: Path, base: Path) -> None:
    for number, changes in enumerate(CONFIGURATIONS.values()):
        folder = shared / str(number)
        write_subject(folder / "subject", base, changes)
        copy(folder / "subject", folder / "whole")
        command(RUN, folder / "whole")
        write_facts(folder / "whole", folder / "facts.json")


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    return [
        Case(KIND, f"{name}, step {step}", partial(stop_and_go, shared / str(number), step, name))
        for number, name in enumerate(CONFIGURATIONS)
        for step in POINTS
    ]


def stopped_at(child: Child, folder: Path, step: int, number: signal.Signals = signal.SIGTERM) -> bool:
    """Send a signal as soon as `step` is in the metrics; whether the run stopped because of it."""
    metrics = folder / "runs/subject/metrics.jsonl"

    def reached() -> bool:
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        return any(text.endswith("}") and (json.loads(text).get("step") or 0) >= step for text in lines)

    if child.wait(reached) is None:
        child.send(number)
    ended = child.wait()
    return ended is not None and ended.code in (75, -number)


def stop_and_go(shared: Path, step: int, name: str, folder: Path) -> Outcome:
    copy(shared / "subject", folder)
    child = Child(RUN, folder)
    stopped = stopped_at(child, folder, step)
    if child.poll() is not None and child.shown.count("Traceback"):
        return Outcome("traceback", 0.0, name, child.shown[-300:])
    if not stopped:  # it had ended: then nothing is left to go on with
        return compare(folder, command((*RUN, "--resume"), folder), shared / "facts.json", name)
    return compare(folder, command(RUN, folder), shared / "facts.json", name)
