"""Sealed folders: every file hashed, the folder renamed last, so that one with its final name is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from fastft.files.atomic import read_json, write_json

SEAL = "integrity.json"


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


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
