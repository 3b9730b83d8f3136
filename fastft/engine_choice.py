"""Which engine `fastft.engine` starts; chosen before its import and without it."""

from __future__ import annotations

import os
import sys

ENGINE_VARIABLE = "FASTFT_ENGINE"


def select(engine: str) -> None:
    """Choose "unsloth" or "transformers" for this process and the ones it starts.

    In an environment variable, because `fastft/engine/__init__.py` needs it at import, in data-loader workers and
    distributed ranks too.
    """
    os.environ[ENGINE_VARIABLE] = engine


def selected() -> str:
    """The engine of this process: what `select` chose, or "unsloth"."""
    return os.environ.get(ENGINE_VARIABLE, "unsloth")


def first_gpu(visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for one GPU: the first of those that it names, or of all where it is not set."""
    return "0" if visible is None else visible.split(",")[0].strip()


def started() -> str | None:
    """The engine that this process has imported, which it keeps to its end; None before it needs one."""
    if "fastft.engine" not in sys.modules:
        return None
    return "unsloth" if "unsloth" in sys.modules else "transformers"
