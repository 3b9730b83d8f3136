from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastft.errors import RecipeError
from fastft.files.atomic import publish, remove_leftovers, staged, staged_folder, write_json, write_text
from fastft.files.seal import SEAL, damage, sealed_folder


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was flushed to the disk and renamed, in order, by name."""
    seen: list[str] = []
    flush, replace = os.fsync, Path.replace

    def note_flush(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        flush(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        seen.append(f"{path.name} -> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", note_rename)
    return seen


def test_a_text_is_on_the_disk_before_its_name_and_the_name_after_it(tmp_path: Path, flushed: list[str]) -> None:
    write_text(tmp_path / "a.txt", "Größe")

    stage = flushed[0]
    assert flushed == [stage, f"{stage} -> a.txt", tmp_path.name]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Größe"


def test_a_folder_is_flushed_with_all_its_files_and_folders(tmp_path: Path, flushed: list[str]) -> None:
    (tmp_path / "stage/deep").mkdir(parents=True)
    (tmp_path / "stage/deep/weights").touch()

    publish(tmp_path / "stage", tmp_path / "final")

    assert flushed == ["stage", "deep", "weights", "stage -> final", tmp_path.name]


def test_a_text_that_cannot_be_written_leaves_the_old_one_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"step": 1})

    with pytest.raises(UnicodeEncodeError):
        write_json(tmp_path / "a.json", {"step": "\ud800"})

    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "step": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_folder_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing/a.txt", "")
    with pytest.raises(NotADirectoryError):
        write_text(tmp_path / "file/a.txt", "")


def test_a_staged_folder_replaces_the_old_one_only_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").touch()

    def fail_half_way() -> None:
        with staged(final) as stage:
            stage.mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "old"]

    with staged(final) as stage:
        stage.mkdir()
        (stage / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "new"]


def test_a_name_that_appears_during_an_export_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    with pytest.raises(RecipeError, match="appeared while it was being written"), staged_folder(out, 10):
        out.write_text("of another program")

    assert out.read_text() == "of another program"
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cut = staged(tmp_path / "final")
    cut.__enter__().mkdir()

    remove_leftovers(tmp_path / "final")

    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_sealed_folder_knows_its_files(tmp_path: Path) -> None:
    with sealed_folder(tmp_path / "deep/final") as stage:
        (stage / "weights").write_bytes(b"1234")

    assert damage(tmp_path / "deep/final") is None
    assert {path.name for path in (tmp_path / "deep/final").iterdir()} == {"weights", SEAL}
    (tmp_path / "deep/final/weights").write_bytes(b"1235")
    assert damage(tmp_path / "deep/final") == "weights is not what was written"
