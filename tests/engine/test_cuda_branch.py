"""Unsloth's CUDA branch, which no other test takes without a GPU: tests/engine/cuda_branch, in a process of its own.

Alone: `pytest -p tests.engine.cuda_branch.branch tests/engine/cuda_branch`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.tiny import ROOT, run, write_recipe


@pytest.mark.slow
def test_what_only_cuda_takes_works_as_on_a_gpu(model: Path, tmp_path: Path) -> None:
    """Only the modules of Unsloth's CUDA branch, which cannot live beside those of its CPU backend, show this."""
    # SGD, because AdamW divides by the gradient's size: where that is near zero, rounding alone decides the sign.
    changes = {"model.dtype": "float32", "train.optim": "sgd", "train.learning_rate": 0.5}
    recipe = write_recipe(tmp_path, model, changes, "cpu-backend")
    run(recipe)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.engine.cuda_branch.branch"]
    # What Unsloth and fastft noted for this process is not for the other.
    mine = ("UNSLOTH", "FASTFT", "ACCELERATE")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(mine)},
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "CPU_BACKEND_RUN": str(recipe),
    }
    done = subprocess.run(
        [*command, "tests/engine/cuda_branch"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout, done.stdout
