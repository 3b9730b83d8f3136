"""Sealed folders: every file hashed, the folder renamed last, so that a folder with its final name is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastft.errors import MachineError
from fastft.files.atomic import publish, staged, write_json
from fastft.files.records import parse_object, read_bytes

SEAL = "integrity.json"


@contextmanager
def sealed_folder(final: Path) -> Iterator[Path]:
    """A new folder that is sealed and replaces `final` at the end, or is removed after an error."""
    with staged(final) as stage:
        stage.mkdir(parents=True)
        yield stage
        write_seal(stage)


def seal(folder: Path, final: Path) -> None:
    """Seal a finished folder, flush it to disk and rename it to its final name.

    A folder that has its final name and a seal is whole; a crash leaves the old name or the new one.
    """
    write_seal(folder)
    publish(folder, final)


def write_seal(folder: Path) -> None:
    """Write the size and hash of every file of `folder` into it."""
    sizes = {}
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        sizes[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(folder / SEAL, sizes)


def damage(folder: Path, hash_file: Callable[[Path], str] | None = None) -> str | None:
    """What is wrong with a sealed folder; None when every file has the size and hash in the seal.

    `hash_file`: what gives the SHA-256 of a file; None reads it.
    """
    try:
        content = read_bytes(folder / SEAL)
        sealed = None if content is None else parse_object(folder / SEAL, content)
        files = None if sealed is None else {name: _entry(entry) for name, entry in sealed.items()}
    except (MachineError, KeyError, TypeError):
        return f"{SEAL} is not what was written"
    if files is None:
        return f"{SEAL} is missing"
    if not files:
        return f"{SEAL} names no file"
    for name, (size, sha256) in files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, {size} were written"
            if (hash_file or file_sha256)(path) != sha256:
                return f"{name} is not what was written"
        except (OSError, ValueError) as error:  # a name that no file can have, a disk that fails
            return f"{name[:80]} cannot be read: {error}"
    return None


def _entry(entry: object) -> tuple[object, object]:
    if not isinstance(entry, dict):
        raise TypeError(entry)
    return entry["bytes"], entry["sha256"]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
