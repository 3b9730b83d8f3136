"""The checkpoints of a run: which there are, the newest whole one, and putting damaged ones aside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fastft.files.seal import damage
from fastft.runs.directory import (
    RunDir,
)

# transformers' own record of a checkpoint: steps, log lines, the best evaluation.
STATE = "trainer_state.json"


def evaluations_at(checkpoint: Path, step: int) -> int:
    """How many evaluations at optimizer step `step` a checkpoint knows of.

    Raises:
        OSError, ValueError: the checkpoint is damaged.
    """
    lines = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["log_history"]
    return sum(1 for line in lines if line.get("step") == step and "eval_loss" in line)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a checkpoint, 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def checkpoints(run: RunDir) -> list[tuple[int, Path]]:
    """The checkpoints of a run as (step, folder), newest first, whole or not."""
    found = []
    for path in run.checkpoints.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and path.is_dir():
            found.append((int(number), path))
    return sorted(found, reverse=True)


def newest_step(run: RunDir) -> int:
    """The optimizer step of the newest checkpoint, whole or not; 0 without one."""
    return max((step for step, _ in checkpoints(run)), default=0)


def newest_checkpoint(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that was passed over."""
    passed: list[str] = []
    for _, path in checkpoints(run):
        wrong = damage(path)
        if wrong is None:
            return path, passed
        passed.append(f"{path} is damaged ({wrong})")
    return None, passed


def set_aside(run: RunDir, newer_than: int) -> None:
    """Rename the checkpoints after step `newer_than`, which are damaged, so that they count as checkpoints no more.

    Otherwise save_total_limit would keep them as the newest, and remove whole ones in their stead.
    """
    for step, path in checkpoints(run):
        if step > newer_than:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
