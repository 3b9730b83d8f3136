"""What an earlier export left: artefacts that need not be made again, and those that are no longer what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastft.errors import MachineError, Problem, Where
from fastft.exports.merged import TOKENIZER_FILES
from fastft.exports.record import FILE, RecordedArtefact, read_exports
from fastft.files.locks import require_locks
from fastft.files.seal import SEAL, damage
from fastft.probe.hashes import kept_sha256, sha256_of_files

# An artefact lies here, in the folder of the exports, until it is compared and sealed.
UNFINISHED = ".unfinished"
_SOURCES = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", *TOKENIZER_FILES)


def source_hash(base: Path, adapter: Path | None, end_ids: tuple[int, ...], checkout: Path | None) -> str:
    """SHA-256 of all that an artefact is made of: base, adapter, tokenizer, end tokens, a llama.cpp checkout."""
    files = [sha256_of_files(folder, _SOURCES) for folder in (base, adapter) if folder is not None]
    text = json.dumps([files, end_ids, None if checkout is None else str(checkout)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def artefact_damage(out: Path, one: RecordedArtefact) -> str | None:
    """What is wrong with an artefact that the record in `out` names; None if it is what was written, or has no seal."""
    path = out / one.path
    if one.sha256 is None:
        return damage(path, kept_sha256) if (path / SEAL).is_file() or one.source is not None else None
    if not path.is_file():
        return "it is no file"
    if path.stat().st_size != one.size_bytes:
        return f"it has {path.stat().st_size:,} bytes, {one.size_bytes:,} were written"
    return None if kept_sha256(path) == one.sha256 else "its bytes are not what was written"


def exported_damage(file: Path) -> str | None:
    """What is wrong with a file, by the record of the exports that it lies in; None too where no record names it."""
    for out in (file.parent, file.parent.parent):
        if (out / FILE).is_file():
            found = [one for one in read_exports(out).artefacts if _same(out / one.path, file)]
            if found:
                return artefact_damage(out, found[-1])
    return None


def find_recorded(out: Path, place: Path) -> RecordedArtefact | None:
    """The record in `out` of the artefact at `place`; None if there is none, or it failed its comparison."""
    found = [one for one in read_exports(out).artefacts if _same(out / one.path, place)]
    proven = [one for one in found if one.source is not None and (one.parity is None or one.parity.passed)]
    return proven[-1] if proven else None


def remove_artefact(place: Path) -> None:
    """Remove an artefact that was made of other weights."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()


@contextlib.contextmanager
def exporting_alone(out: Path) -> Iterator[None]:
    """Lock the folder of the exports for this process, and remove what a stopped one left half-written.

    Raises:
        MachineError: another process exports into it, or the system has no locks.
    """
    require_locks("fastft export")
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            wrong, instead = "another process exports into this folder", "wait for it, or choose another --out"
            raise MachineError(Problem(Where(str(out)), "", wrong, instead)) from None
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        yield
    finally:
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        os.close(folder)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
