"""What only an NVIDIA GPU can show. Without one every test of this folder is skipped.

GPU_TESTS_ON_CPU=1 runs those whose bodies a processor can run, without 4-bit weights: to see that they work.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # What libraries warn of while they are imported is theirs. Unsloth comes before everything that it patches.
    warnings.simplefilter("ignore")
    import fastft.engine  # noqa: F401

import torch

from fastft.engine.selftest.made_up import make_model

HERE = Path(__file__).parent
ON_CPU = os.environ.get("GPU_TESTS_ON_CPU") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without a GPU; only warnings that point at our own code are errors, as in tests/engine."""
    missing = None if torch.cuda.is_available() else f"no CUDA device: torch {torch.__version__}"
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.filterwarnings("error:::fastft"))
        item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)
        needs_gpu = not ON_CPU or item.get_closest_marker("needs_cuda") is not None
        if missing is not None and needs_gpu:
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Llama of 2 layers and width 256, with heads of 64 as attention kernels want them."""
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def in_4bit() -> bool:
    """Whether 4-bit weights can be had."""
    return not ON_CPU
