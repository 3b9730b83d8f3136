"""Files and folders that appear whole or not at all: written beside their final name, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastft.errors import MachineError, Problem, RecipeError, Where


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; replaces an earlier one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; replaces an earlier one."""
    with staged(path) as stage:
        stage.write_bytes(content)


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


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A new name beside `final` for a file or folder, which replaces `final` at the end, or is removed after an error.

    Raises:
        OSError: it cannot be written.
    """
    # A random number too, because two containers on one disk may both be process 1.
    stage = final.with_name(f".{final.name}.partial-{secrets.token_hex(4)}")
    try:
        yield stage
        publish(stage, final)
    finally:
        if stage.is_dir():
            shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            stage.unlink()


def remove_leftovers(final: Path) -> None:
    """Remove the leftovers of killed processes for `final`; only while no other process can write it."""
    for left in final.parent.glob(f".{final.name}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def publish(stage: Path, final: Path) -> None:
    """Flush a file, or a folder with its files, to disk and rename it to its final name; replaces an earlier one."""
    for path in (stage, *stage.rglob("*")):
        if path.is_file() or path.is_dir():
            _flush(path)
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(final)
    stage.replace(final)
    _flush(final.parent)


@contextmanager
def staged_folder(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A new folder that becomes `out` at the end; raises what `staged_file` raises."""
    with staged_file(out, needed_bytes) as stage:
        stage.mkdir()
        yield stage


@contextmanager
def staged_file(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A new file's name that becomes `out` at the end, and is removed after an error.

    Raises:
        RecipeError: `out` exists.
        MachineError: fewer than `needed_bytes` are free, or the disk fills up on the way.
    """
    if out.exists() or out.is_symlink():
        raise RecipeError(Problem(Where(str(out)), "", "exists already", "choose another name, or remove it first"))
    free = free_bytes(out)
    if free < needed_bytes:
        wrong = f"not enough disk space: needs {needed_bytes:,} bytes, {free:,} bytes are free"
        instead = f"free {needed_bytes - free:,} bytes, or write to another disk"
        raise MachineError(Problem(Where(str(out)), "", wrong, instead))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with staged(out) as stage:
            yield stage
            if out.exists():
                wrong = "appeared while it was being written"
                raise RecipeError(Problem(Where(str(out)), "", wrong, "choose another name"))
    except OSError as error:
        wrong = f"could not be written: {error.strerror or error}; nothing was left under this name"
        instead = f"needs {needed_bytes:,} bytes, {free_bytes(out):,} bytes are free"
        raise MachineError(Problem(Where(str(out)), "", wrong, instead)) from error


def free_bytes(path: Path) -> int:
    """The free bytes for this user on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def may_write(path: Path) -> bool:
    """Whether this user may make files in a folder, which need not exist yet."""
    return os.access(_existing(path), os.W_OK | os.X_OK)


def on_one_disk(one: Path, other: Path) -> bool:
    """Whether two paths, which need not exist yet, are on one file system."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
