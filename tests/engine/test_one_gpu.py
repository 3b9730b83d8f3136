"""Plain transformers in one process sees one GPU: its trainer would spread a batch over all, which TRL refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastft.engine_choice import ENGINE_VARIABLE, first_gpu

ASK = "import fastft.engine, os; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))"


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"WORLD_SIZE": "2"}, "all"),
        ({"WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "2,3"}, "2,3"),
    ],
    ids=["all", "two", "none", "torchrun", "torchrun with two"],
)
def test_the_first_visible_gpu_is_the_only_one_without_torchrun(given: dict[str, str], seen: str) -> None:
    inherited = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE")}
    environment = {**inherited, ENGINE_VARIABLE: "transformers", **given}

    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == seen


def test_entries_may_be_names() -> None:
    assert first_gpu("GPU-8932f937, GPU-1") == "GPU-8932f937"
