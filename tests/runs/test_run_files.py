"""Damaged files of a run: one Problem that names the file, whatever the damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.runs.directory import RunDir, RunRecord, Settings
from fastft.runs.held_out import HeldOut, Untrained
from fastft.runs.manifest import Manifest
from fastft.runs.result import Result

KINDS: list[type[RunRecord]] = [Settings, Manifest, Untrained, HeldOut, Result]
DAMAGE = [b"", b"{", b"[]", b"null", b"7", b'{"schema": "x"}', b'{"schema": 1e999}', b"\xff\xfe", b"[" * 100_000]
DAMAGE += [b'{"settings": []}', b'{"conversations": [[{"role": 1}]], "end_ids": []}']
DAMAGE += [b'{"conversations": [[]], "end_ids": []}', b'{"conversations": [[{"x": "y"}]], "end_ids": [1]}']


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_file_is_one_problem_that_names_it(tmp_path: Path, kind: type[RunRecord], content: bytes) -> None:
    (tmp_path / kind.FILE).write_bytes(content)

    with pytest.raises(MachineError) as refused:
        RunDir(tmp_path).read(kind)

    assert [problem.where.path for problem in refused.value.problems] == [str(tmp_path / kind.FILE)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_the_place_of_a_file_is_one_problem(tmp_path: Path, kind: type[RunRecord]) -> None:
    (tmp_path / kind.FILE).mkdir()

    with pytest.raises(MachineError, match="cannot be read: Is a directory"):
        RunDir(tmp_path).read(kind)
