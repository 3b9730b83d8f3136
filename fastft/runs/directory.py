"""The run directory: its name, its files, written atomically, its attempts, and the checkpoint to go on from.

runs/<name>/
  recipe.toml   settings.json   plan.json   manifest.json   metrics.jsonl   rejects.jsonl
  before.json (the held-out figures of the untrained model)   held_out.json (what exports are compared on)
  attempts/1/log.txt   checkpoints/step-100/   adapter/   exports/   result.json (last: the run finished)
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.errors import MachineError, Problem, Where
from fastft.files.atomic import read_json, write_json, write_text
from fastft.recipe.loader import LoadedRecipe

# The held-out conversations that exports are compared on, and the tokens at which trained answers end.
HELD_OUT = "held_out.json"


@dataclass(frozen=True)
class RunDir:
    """One run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        return read_json(self.path / "result.json")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the run was started on, or None before it was known."""
        return read_json(self.path / "manifest.json")


def run_name(recipe: Path) -> str:
    """The folder name of a recipe's runs: its file name, with nothing in it that could lead elsewhere."""
    return re.sub(r"[^\w.-]+", "-", recipe.stem).strip(".-") or "run"


def next_run_dir(runs_dir: Path, name: str) -> RunDir:
    """The folder that a new run of `name` would get: name, then name-2, name-3, ..., after the last that there is."""
    taken = [number for number, _ in _runs(runs_dir, name)]
    return RunDir(runs_dir / (f"{name}-{max(taken) + 1}" if taken else name))


def create_run_dir(runs_dir: Path, loaded: LoadedRecipe) -> RunDir:
    """Make the folder of a new run, with the recipe's bytes and every setting in it. Never reuses a folder.

    Raises:
        MachineError: the folder cannot be made.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        while True:
            run = next_run_dir(runs_dir, run_name(loaded.path))
            try:
                run.path.mkdir()
                break
            except FileExistsError:  # another run was faster
                continue
        write_text(run.path / "recipe.toml", loaded.text)
        write_json(run.path / "settings.json", loaded.settings())
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        raise MachineError(
            Problem(Where(str(runs_dir)), "--runs-dir", wrong, "name a folder you may write to")
        ) from None
    return run


def find_run(runs_dir: Path, loaded: LoadedRecipe) -> RunDir | None:
    """The newest run of this very recipe text and these very settings, finished or not; None if there is none."""
    for _, path in sorted(_runs(runs_dir, run_name(loaded.path)), reverse=True):
        run = RunDir(path)
        try:
            same_text = (path / "recipe.toml").read_text(encoding="utf-8") == loaded.text
        except OSError:
            continue
        if same_text and read_json(path / "settings.json") == json.loads(json.dumps(loaded.settings())):
            return run
    return None


def _runs(runs_dir: Path, name: str) -> Iterator[tuple[int, Path]]:
    """(number, path) of what is called name (1), name-2, name-3, ...; some may have been deleted."""
    for path in runs_dir.iterdir() if runs_dir.is_dir() else ():
        number = re.fullmatch(re.escape(name) + r"(?:-([1-9][0-9]*))?", path.name)
        if number:
            yield int(number[1] or 1), path


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the run's folder for this process alone; the lock goes with the process, however it ends.

    Raises:
        MachineError: another process is running in it.
    """
    with (run.path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            wrong, instead = f"{holder} is running in this folder", "wait for it, or start a new run without --resume"
            raise MachineError(Problem(Where(str(run.path)), "", wrong, instead)) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def new_attempt(run: RunDir) -> Path:
    """Make the folder of the next attempt and return the path of its log."""
    number = 1
    while (run.path / "attempts" / str(number)).exists():
        number += 1
    folder = run.path / "attempts" / str(number)
    folder.mkdir(parents=True)
    return folder / "log.txt"
