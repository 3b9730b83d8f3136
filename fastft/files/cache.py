"""The folder of what fastft can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where fastft keeps what it can make again: converted base models, Unsloth's compiled kernels, verdicts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastft"
