"""What sealing and checking a checkpoint cost, and how long a new run waits for the hash of its base.

    python benchmarks/sealing.py

The checkpoint has the bytes of rank 16 on an 8B model: 42 million trained weights in float32 with two AdamW moments.
The base is one file of 4 GiB, never hashed before (16 GB are four times that).
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

INTERVAL_SECONDS = 300
CHECKPOINT_BYTES = 42_000_000 * 12
BASE_BYTES = 4 * 1024**3
OUT = Path(__file__).with_suffix(".json")


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> int:
    from fastft.files.seal import damage, write_seal
    from fastft.probe.hashes import sha256_of_files
    from fastft.stages.beside import Beside

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        (folder / "step-1").mkdir()
        (folder / "step-1" / "weights").write_bytes(os.urandom(CHECKPOINT_BYTES))
        sealing = seconds(lambda: write_seal(folder / "step-1"))
        checking = seconds(lambda: damage(folder / "step-1"))
        (folder / "base").mkdir()
        with (folder / "base" / "model.safetensors").open("wb") as file:
            file.truncate(BASE_BYTES)

        def hash_base() -> None:
            sha256_of_files(folder / "base", ("*.safetensors",))

        begun = time.perf_counter()
        beside = Beside(hash_base)
        delay = time.perf_counter() - begun
        beside.wait()
        hashing = time.perf_counter() - begun
        kept = seconds(hash_base)
    figures = {
        "command": "python benchmarks/sealing.py",
        "machine": f"{os.cpu_count()} shared cores ({platform.machine()})",
        "checkpoint_bytes": CHECKPOINT_BYTES,
        "seal_seconds": round(sealing, 3),
        "check_seconds": round(checking, 3),
        "share_of_5_minutes": round(sealing / INTERVAL_SECONDS, 5),
        "base_bytes": BASE_BYTES,
        "hash_seconds": round(hashing, 2),
        "first_step_delayed_seconds": round(delay, 5),
        "kept_hash_seconds": round(kept, 5),
    }
    OUT.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
