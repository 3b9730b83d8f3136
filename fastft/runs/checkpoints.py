"""The checkpoints of a run: which there are, the newest whole one, and renaming damaged ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from fastft.files.seal import damage
from fastft.runs.directory import RunDir

# transformers' own record of a checkpoint: steps, log lines, the best evaluation.
STATE = "trainer_state.json"
# Links, and names that fastft would not write, such as step-06 or step-², are no checkpoints.
NAME = re.compile("step-[1-9][0-9]{0,17}")


def evaluations_at(checkpoint: Path, step: int) -> int:
    """The number of evaluations at optimizer step `step` in a checkpoint.

    Raises:
        OSError, ValueError: the checkpoint is damaged.
    """
    lines = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["log_history"]
    return sum(1 for line in lines if line.get("step") == step and "eval_loss" in line)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a checkpoint, 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def ranks_of(checkpoint: Path) -> int:
    """How many processes trained up to a checkpoint: each wrote its random numbers."""
    return max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


def checkpoints(run: RunDir) -> list[tuple[int, Path]]:
    """The checkpoints of a run as (step, folder), newest first, whole or not."""
    folders = [path for path in run.checkpoints.glob("step-*") if path.is_dir() and not path.is_symlink()]
    numbered = [path for path in folders if NAME.fullmatch(path.name)]
    return sorted(((step_of(path), path) for path in numbered), reverse=True)


def newest_checkpoint(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each damaged newer one."""
    passed: list[str] = []
    for _, path in checkpoints(run):
        wrong = damage(path)
        if wrong is None:
            return path, passed
        passed.append(f"{path} is damaged ({wrong})")
    return None, passed


def set_aside(run: RunDir, newer_than: int) -> None:
    """Rename the checkpoints after step `newer_than`, which are damaged, so that they no longer count as checkpoints.

    Otherwise save_total_limit would keep them as the newest, and remove whole ones instead.
    """
    for step, path in checkpoints(run):
        if step > newer_than:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
