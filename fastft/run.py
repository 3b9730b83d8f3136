"""The run directory: its name, its files, written atomically, its attempts, and the checkpoint to go on from.

runs/<name>/
  recipe.toml   settings.json   plan.json   manifest.json   metrics.jsonl   rejects.jsonl
  before.json (the held-out figures of the untrained model)   held_out.json (what exports are compared on)
  attempts/1/log.txt   checkpoints/step-100/   adapter/   exports/   result.json (last: the run finished)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.errors import MachineError, Problem, Where
from fastft.recipe.loader import LoadedRecipe

SEAL = "integrity.json"
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


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name, flushed to disk, then renamed."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when there is no such file."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value


def seal(folder: Path, final: Path) -> None:
    """Make `folder` durable and give it its final name: hash every file, flush, write the seal, rename.

    A folder that has its final name and a seal is whole; a crash at any moment leaves either that or a `.partial` one.
    """
    sizes = {}
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        sizes[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    write_json(folder / SEAL, sizes)
    if final.exists():
        shutil.rmtree(final)
    folder.rename(final)
    _flush_folder(final.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder: None when every file has the size and hash that its seal says."""
    try:
        sealed = read_json(folder / SEAL)
        files = None if sealed is None else {name: (entry["bytes"], entry["sha256"]) for name, entry in sealed.items()}
    except (ValueError, AttributeError, KeyError, TypeError):
        return f"{SEAL} is not what was written"
    if files is None:
        return f"{SEAL} is missing"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return f"{name} is not what was written"
    return None


def checkpoints(run: RunDir) -> list[tuple[int, Path]]:
    """The checkpoints of a run as (step, folder), newest first, whole or not."""
    found = []
    for path in run.checkpoints.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and path.is_dir():
            found.append((int(number), path))
    return sorted(found, reverse=True)


def newest_checkpoint(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that was passed over."""
    passed: list[str] = []
    for _, path in checkpoints(run):
        wrong = damage(path)
        if wrong is None:
            return path, passed
        passed.append(f"{path} is damaged ({wrong})")
    return None, passed


def set_aside(run: RunDir, newer_than: int) -> None:
    """Rename the checkpoints after step `newer_than`, which are damaged, so that they count as checkpoints no more.

    Otherwise save_total_limit would keep them as the newest, and remove whole ones in their stead.
    """
    for step, path in checkpoints(run):
        if step > newer_than:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
