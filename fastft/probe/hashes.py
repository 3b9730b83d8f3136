"""SHA-256 of large files, each computed once: kept in the cache folder for as long as a file does not change."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastft.files.atomic import write_json
from fastft.files.cache import cache_folder


def sha256_of_files(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file of `folder` that fits one of `patterns`, by its name.

    A file is hashed again when its size, time or inode changed. hashlib releases Python's lock: in the main thread,
    files are hashed side by side.
    """
    kept_in = cache_folder() / "hashes.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(kept_in.read_text(encoding="utf-8")))
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    keys = {file: _key(file) for file in files}
    unknown = [file for file in files if not isinstance(known.get(keys[file]), str)]
    if unknown:
        if len(unknown) == 1 or threading.current_thread() is not threading.main_thread():
            found = list(map(_sha256, unknown))  # the end of the process does not wait for a daemon, for a pool it does
        else:
            with ThreadPoolExecutor() as pool:
                found = list(pool.map(_sha256, unknown))
        known |= zip((keys[file] for file in unknown), found, strict=True)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            kept_in.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept_in, known)
    return {file.name: known[keys[file]] for file in files}


def kept_sha256(file: Path) -> str:
    """SHA-256 of one file, kept as those of `sha256_of_files`."""
    return sha256_of_files(file.parent, (glob.escape(file.name),))[file.name]


def _key(file: Path) -> str:
    """What a file's hash is kept under: its place, and what changes when it is written."""
    stat = file.stat()
    return f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
