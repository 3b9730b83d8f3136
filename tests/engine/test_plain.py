"""What plain transformers trains alone, such as classification: tests/engine/plain, in a process without Unsloth.

Alone: `FASTFT_ENGINE=transformers pytest tests/engine/plain`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.engine.tiny import ROOT


def test_what_plain_transformers_trains(tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("UNSLOTH", "ACCELERATE"))},
        "FASTFT_ENGINE": "transformers",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engine/plain"]

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
    assert " passed" in done.stdout, done.stdout
