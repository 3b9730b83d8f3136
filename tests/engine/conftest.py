"""Unsloth first: importing fastft.engine here brings it up before any test of this folder imports transformers."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # What libraries warn of while they are imported is theirs; see the hook below for what stays an error.
    warnings.simplefilter("ignore")
    import fastft.engine  # noqa: F401

import torch

from tests.engine.tiny import make_model

# Sums in float32 depend on how they are split among threads: one thread here and in the processes that tests start.
torch.set_num_threads(1)
# Unsloth collects garbage with each model, and walks through all of torch and transformers each time: a third of the
# time of these tests.
gc.freeze()

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In this folder only warnings that point at our own code are errors: torch and its like warn of themselves.

    A warning points at the code that called what is warned of, so a deprecated call of ours still fails a test.
    """
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("error:::fastft"))
            item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of these tests' own, without what earlier runs measured here; compiled kernels stay where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model."""
    return make_model(tmp_path_factory.mktemp("model"))
