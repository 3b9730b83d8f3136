"""Collected only where branch.py has brought Unsloth's CUDA branch up: see tests/engine/test_cuda_branch.py."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

collect_ignore_glob = [] if "tests.engine.cuda_branch.branch" in sys.modules else ["test_*.py"]


@pytest.fixture(autouse=True)
def h100(nvidia_smi: Callable[[str], None], install: Callable[[str, str], None]) -> None:
    """A driver that reports an H100, and a PyTorch that is no CPU build: what fastft plans for."""
    nvidia_smi("NVIDIA H100 80GB HBM3, 81559, 9.0")
    install("torch", torch.__version__.split("+")[0])


@pytest.fixture
def t4(nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A card without bfloat16: float32 stays float32 on it, so that sums can be compared digit by digit."""
    nvidia_smi("Tesla T4, 15360, 7.5")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
