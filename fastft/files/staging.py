"""Files that appear whole or not at all: written beside their final name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastft.errors import MachineError, Problem, RecipeError, Where


@contextmanager
def staged_folder(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A new folder that becomes `out` when the block ends well, and is removed when it raises.

    Raises:
        RecipeError: `out` exists.
        MachineError: fewer than `needed_bytes` are free, or the disk fills up on the way.
    """
    stage = _prepare(out, needed_bytes)
    stage.mkdir(parents=True)
    try:
        yield stage
        for file in sorted(path for path in stage.rglob("*") if path.is_file()):
            _flush(file)
        _flush(stage)
        _publish(stage, out)
    except OSError as error:
        raise _explain(error, out, needed_bytes) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def staged_file(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A new file's name that becomes `out` when the block ends well; raises what `staged_folder` raises."""
    stage = _prepare(out, needed_bytes)
    stage.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield stage
        _flush(stage)
        _publish(stage, out)
    except OSError as error:
        raise _explain(error, out, needed_bytes) from error
    finally:
        stage.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """The bytes that this user may still write on the disk that `path` is, or will be, on."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _prepare(out: Path, needed_bytes: int) -> Path:
    if out.exists() or out.is_symlink():
        raise RecipeError(Problem(Where(str(out)), "", "exists already", "choose another name, or remove it first"))
    free = free_bytes(out)
    if free < needed_bytes:
        raise MachineError(
            Problem(
                Where(str(out)),
                "",
                f"not enough disk space: needs {needed_bytes:,} bytes, {free:,} bytes are free",
                f"free {needed_bytes - free:,} bytes, or write to another disk",
            )
        )
    return out.with_name(f".{out.name}.partial-{os.getpid()}")


def _publish(stage: Path, out: Path) -> None:
    if out.exists():
        raise RecipeError(Problem(Where(str(out)), "", "appeared while it was being written", "choose another name"))
    stage.rename(out)
    _flush(out.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, out: Path, needed_bytes: int) -> MachineError:
    free = free_bytes(out)
    return MachineError(
        Problem(
            Where(str(out)),
            "",
            f"could not be written: {error.strerror or error}; nothing was left under this name",
            f"needs {needed_bytes:,} bytes, {free:,} bytes are free",
        )
    )
