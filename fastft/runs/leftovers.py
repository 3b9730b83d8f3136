"""What runs and fastft's cache keep on disk although nothing needs it any more."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastft.errors import MachineError
from fastft.files.cache import SERVED, cache_folder
from fastft.runs.directory import RunDir
from fastft.runs.state import state_of

# Folders of the cache whose entries are made again when they are needed, and what an entry is.
CACHES = {"rows": "prepared rows", "converted": "a converted model", SERVED: "a GGUF file of fastft serve"}
# What a killed process was writing is nobody's after a day.
SCRATCH_SECONDS = 86_400.0


@dataclass(frozen=True)
class Leftover:
    """A folder that can go, what it is, and its bytes."""

    path: Path
    what: str
    size_bytes: int

    def remove(self) -> None:
        """Remove the folder.

        Raises:
            OSError: it cannot be removed.
        """
        shutil.rmtree(self.path)


def leftover_checkpoints(folder: Path) -> tuple[list[Leftover], list[str]]:
    """(the checkpoints of each finished run in `folder`, why those of the others stay).

    A finished run has its weights in a folder of their own, so that only a run that goes on needs its checkpoints.
    """
    found, kept = [], []
    runs = sorted(path for path in folder.iterdir() if (path / "recipe.toml").is_file() and not path.is_symlink())
    for run in map(RunDir, runs):
        if run.checkpoints.is_symlink() or not run.checkpoints.is_dir():
            continue
        why = _needed(run)
        size = size_of(run.checkpoints)
        if why:
            kept.append(f"{run.checkpoints}: {why}")
        elif size:
            found.append(Leftover(run.checkpoints, "checkpoints of a finished run", size))
    return found, kept


def _needed(run: RunDir) -> str:
    """Why the checkpoints of a run stay, "" where they can go."""
    try:
        state = state_of(run)[0]
    except MachineError as error:
        return f"{error.problems[0]}"
    if state != "finished":
        return f"the run is {state}, and continues from them" if state != "running" else "the run goes on"
    weights = (*run.adapter.glob("*.safetensors"), *run.exports.glob("merged*/*.safetensors"))
    return "" if weights else "they hold the only weights of the run"


def leftover_caches(unused_days: float, now: float | None = None) -> list[Leftover]:
    """Prepared rows and converted models that nothing read for `unused_days`, and what killed processes left.

    Raises:
        MachineError: this user has no home folder.
    """
    today, found = now or time.time(), []
    for kind, what in CACHES.items():
        for path in _folders(cache_folder() / kind):
            idle = today - _last_used(path)
            if path.name.startswith("."):
                if idle > SCRATCH_SECONDS:
                    found.append(Leftover(path, "unfinished, of a process that ended", size_of(path)))
            elif idle > unused_days * 86_400:
                found.append(Leftover(path, f"{what}, not read for {idle / 86_400:.0f} days", size_of(path)))
    return found


def _folders(parent: Path) -> Iterator[Path]:
    return (path for path in sorted(parent.glob("*")) if path.is_dir() and not path.is_symlink())


def _last_used(folder: Path) -> float:
    """When a file in it was last read, as far as the file system writes that down, or written."""
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        status = path.lstat()
        times.append(max(status.st_atime, status.st_mtime) if path.is_file() else status.st_mtime)
    return max(times)


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
