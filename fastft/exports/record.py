"""export.json: what was exported into a folder, and how close each artefact is to the trained model."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastft.exports.parity import Verdict
from fastft.files.records import read_record, write_record

FILE = "export.json"


@dataclass(frozen=True)
class RecordedArtefact:
    """One artefact of a folder, with the figures of its comparison."""

    kind: str
    path: str
    """Relative to the folder of export.json."""
    size_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    parity: Verdict | None = None
    """None: it was not compared with the trained model."""
    source: str | None = None
    """SHA-256 of what it was made of; None in records that older versions wrote."""
    sha256: str | None = None
    """Of a file; a folder has its own seal."""


@dataclass(frozen=True)
class ExportRecord:
    """All artefacts that were exported into one folder, those of earlier exports first."""

    SCHEMA: ClassVar[int] = 1

    artefacts: tuple[RecordedArtefact, ...]


def read_exports(out: Path) -> ExportRecord:
    """The record of the exports in `out`, empty where there is none.

    Raises:
        MachineError: export.json is damaged, or was written by a newer fastft.
    """
    instead = "move it away: the next export starts a new one"
    return read_record(out / FILE, ExportRecord, instead) or ExportRecord(())


def add_exports(out: Path, fresh: Sequence[RecordedArtefact]) -> Path:
    """Record `fresh` after the earlier artefacts in `out` that still exist; returns the path of export.json.

    Raises:
        MachineError: as `read_exports`.
        OSError: it cannot be written.
    """
    new = {one.path for one in fresh}
    earlier = [one for one in read_exports(out).artefacts if one.path not in new and os.path.lexists(out / one.path)]
    write_record(out / FILE, ExportRecord((*earlier, *fresh)))
    return out / FILE
