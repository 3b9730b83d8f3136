"""What the operating system refuses is named by its cause, with what to do."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from fastft.runs.directory import RunDir
from fastft.stages.faults import explain


@pytest.mark.parametrize(
    ("number", "wrong"),
    [
        (
            errno.ENOSPC,
            r"result.json: the disk is full: [\d.]+ [KMG]iB are free; free some space, then run",
        ),
        (errno.EDQUOT, r"result.json: the disk is full: "),
        (errno.EROFS, r"result.json: cannot be written: Read-only file system; make the folder writable"),
        (errno.EACCES, r"result.json: cannot be written: Permission denied"),
        (errno.EIO, r"result.json: failed: Input/output error; see the log of this attempt"),
    ],
)
def test_each_refusal_has_its_words(tmp_path: Path, number: int, wrong: str) -> None:
    (tmp_path / "recipe.toml").touch()
    error = OSError(number, os.strerror(number), str(tmp_path / "result.json"))

    explained = explain(error, RunDir(tmp_path))

    assert explained.exit_code == 4
    assert re.search(wrong, str(explained))


def test_a_run_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    error = OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "gone" / "metrics.jsonl"))

    explained = explain(error, RunDir(tmp_path / "gone"))

    assert str(explained) == f"{tmp_path / 'gone'}: was removed while the run went on; start the run again"
