"""The run directory: its name and files, the lock on it, its attempts."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from fastft.console import redact
from fastft.errors import MachineError, Problem, Where
from fastft.files.atomic import write_text
from fastft.files.records import Record, fault, read_bytes, read_record, write_record
from fastft.recipe.loader import LoadedRecipe, Setting
from fastft.runs.result import Result


class RunRecord(Record, Protocol):
    """A record in a run's folder, with the name of its file."""

    FILE: ClassVar[str]


R = TypeVar("R", bound=RunRecord)


@dataclass(frozen=True)
class Settings:
    """settings.json: every `section.key` with its value and its origin."""

    FILE: ClassVar[str] = "settings.json"
    SCHEMA: ClassVar[int] = 1

    settings: dict[str, Setting]
    recipe_sha256: str | None = None
    """Of the text in recipe.toml."""


@dataclass(frozen=True)
class RunDir:
    """One run's folder: the path of each thing in it, and its records."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The bytes that the user wrote, without secrets."""
        return self.path / "recipe.toml"

    @property
    def plan(self) -> Path:
        """Figures and exact calls, for people and programs; of it, fastft reads what `Planned` names."""
        return self.path / "plan.json"

    @property
    def rejects(self) -> Path:
        """The rows that are not trained, with reasons."""
        return self.path / "rejects.jsonl"

    @property
    def metrics(self) -> Path:
        """One line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def is_finished(self) -> bool:
        """Whether the run finished: its result is written last."""
        return (self.path / Result.FILE).is_file()

    @property
    def result(self) -> Result | None:
        """The result of the run, or None before it finished.

        Raises:
            MachineError: result.json is damaged.
        """
        return self.read(Result)

    def read(self, kind: type[R]) -> R | None:
        """The record of that kind, or None if it is not written yet.

        Raises:
            MachineError: its file is damaged.
        """
        return read_record(self.path / kind.FILE, kind)

    def require(self, kind: type[R]) -> R:
        """The record of that kind, which this run has written for sure.

        Raises:
            MachineError: its file is damaged or missing.
        """
        record = self.read(kind)
        if record is None:
            raise fault(self.path / kind.FILE, "is missing", "restore it from a copy, or start a new run")
        return record

    def recipe_text(self) -> str:
        """The text of the recipe.

        Raises:
            MachineError: it is missing, or not what was written.
        """
        content, settings = read_bytes(self.recipe), self.read(Settings)
        if content is None:
            raise fault(self.recipe, "is missing", "restore it from a copy")
        if settings is not None and settings.recipe_sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise fault(self.recipe, "is damaged: its text is not what was written", "restore it from a copy")
        return content.decode(errors="replace")

    def write(self, record: RunRecord) -> None:
        """Write a record whole or not at all."""
        write_record(self.path / record.FILE, record)


def run_name(recipe: Path) -> str:
    """The folder name of a recipe's runs: its file name without characters that could name another folder."""
    return re.sub(r"[^\w.-]+", "-", recipe.stem).strip(".-") or "run"


def next_run_dir(runs_dir: Path, name: str) -> RunDir:
    """The folder of a new run of `name`: name, then name-2, name-3, ..., one after the last."""
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
            with suppress(FileExistsError):  # another process took the name
                run.path.mkdir()
                break
        text = redact(loaded.text)
        write_text(run.recipe, text)
        run.write(Settings(loaded.settings(), hashlib.sha256(text.encode()).hexdigest()))
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        instead = "name a folder you may write to"
        raise MachineError(Problem(Where(str(runs_dir)), "--runs-dir", wrong, instead)) from None
    return run


def find_run(runs_dir: Path, loaded: LoadedRecipe) -> RunDir | None:
    """The newest run of the same recipe text and the same settings, finished or not; None if there is none."""
    runs = sorted(_runs(runs_dir, run_name(loaded.path)), reverse=True)
    return next((RunDir(path) for _, path in runs if not differences(RunDir(path), loaded)), None)


def newest_run(runs_dir: Path, name: str) -> RunDir | None:
    """The newest run of a recipe file of that name, with any settings; None if there is none."""
    runs = [(number, path) for number, path in _runs(runs_dir, name) if (path / Settings.FILE).is_file()]
    return RunDir(max(runs)[1]) if runs else None


def differences(run: RunDir, loaded: LoadedRecipe) -> list[str]:
    """What distinguishes a run's recipe from `loaded`: `train.seed (1, now 2)`, or "its text".

    Raises:
        MachineError: the settings of the run are damaged.
    """
    before, now = run.read(Settings), loaded.settings()
    if before is None:
        return ["its settings.json, which is missing"]
    keys = [key for key in dict.fromkeys([*before.settings, *now]) if before.settings.get(key) != now.get(key)]
    if keys:
        return [_difference(key, before.settings.get(key), now.get(key)) for key in keys]
    same = run.recipe.is_file() and run.recipe.read_bytes() == redact(loaded.text).encode()
    return [] if same else ["its text"]


def _difference(key: str, before: Setting | None, now: Setting | None) -> str:
    if before is not None and now is not None and before.value == now.value:
        return f"{key} (from {before.origin}, now from {now.origin})"
    old, new = ("unknown" if each is None else json.dumps(each.value) for each in (before, now))
    return f"{key} ({old}, now {new})"


def _runs(runs_dir: Path, name: str) -> Iterator[tuple[int, Path]]:
    """(number, path) of the runs name (1), name-2, name-3, ...; some may be missing."""
    for path in runs_dir.iterdir() if runs_dir.is_dir() else ():
        number = re.fullmatch(re.escape(name) + r"(?:-([1-9][0-9]{0,17}))?", path.name)
        if number:
            yield int(number[1] or 1), path


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Lock the run's folder for this process; the lock ends with the process, also when it is killed.

    Raises:
        MachineError: another process is running in it, or it cannot be locked.
    """
    import fcntl  # Windows has none: the commands that only read runs work there

    lock = run.path / "lock"
    try:
        file = lock.open("a+")
    except OSError as error:
        raise fault(lock, f"cannot be opened: {error.strerror}", "move it away, or make it writable") from error
    with file:
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
    """Make the folder of the next attempt and return the path of its log.

    Raises:
        MachineError: it cannot be made.
    """
    folders = (run.attempts / str(number) for number in itertools.count(1))
    folder = next(path for path in folders if not os.path.lexists(path))
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise fault(folder, f"cannot be made: {error.strerror}", f"move {run.attempts} away") from error
    return folder / "log.txt"
