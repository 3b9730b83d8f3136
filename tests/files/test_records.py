from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from fastft.errors import MachineError
from fastft.files.records import read_record, write_record


@dataclass(frozen=True)
class Wheel:
    inches: float
    spokes: int | None = None


@dataclass(frozen=True)
class Bicycle:
    SCHEMA: ClassVar[int] = 2

    name: str
    wheels: tuple[Wheel, ...]
    sizes: dict[str, int] = field(default_factory=dict)
    folder: Path = Path()


BICYCLE = Bicycle("Größe", (Wheel(28.0, 36), Wheel(math.inf)), {"frame": 58}, Path("a/b"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_record(tmp_path / "bicycle.json", BICYCLE)

    assert read_record(tmp_path / "bicycle.json", Bicycle) == BICYCLE
    assert [path.name for path in tmp_path.iterdir()] == ["bicycle.json"]


def test_the_schema_comes_first_in_the_file(tmp_path: Path) -> None:
    write_record(tmp_path / "bicycle.json", BICYCLE)

    text = (tmp_path / "bicycle.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "schema": 2,\n  "name": "Größe",\n')
    assert text.endswith("}\n")


def test_a_figure_that_is_no_number_is_read_back(tmp_path: Path) -> None:
    write_record(tmp_path / "bicycle.json", Bicycle("a", (Wheel(math.nan),)))

    read = read_record(tmp_path / "bicycle.json", Bicycle)
    assert read is not None
    assert math.isnan(read.wheels[0].inches)


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "bicycle.json", Bicycle) is None


def test_unknown_keys_are_ignored_and_a_missing_schema_is_the_first(tmp_path: Path) -> None:
    (tmp_path / "bicycle.json").write_text('{"name": "a", "wheels": [{"inches": 28, "tyre": 1}], "bell": true}')

    assert read_record(tmp_path / "bicycle.json", Bicycle) == Bicycle("a", (Wheel(28.0),))


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "is damaged: not JSON"),
        (b'{"name": "a", "whee', "is damaged: not JSON"),
        (b"[" * 100_000, "is damaged: not JSON"),
        (b"\xff\xfe", "is damaged: not UTF-8"),
        (b"[]", "is damaged: not a JSON object"),
        (b"{}", "is damaged: name: Field required"),
        (b'{"name": "a", "wheels": [{"inches": "28"}]}', "is damaged: wheels.0.inches: Input should be a valid number"),
        (b'{"name": "a", "wheels": {}}', "is damaged: wheels: Input should be a valid"),
        (b'{"schema": "2", "name": "a", "wheels": []}', "is damaged: schema is '2', not a number"),
        (
            b'{"schema": 3, "name": "a", "wheels": []}',
            "was written by a newer fastft (schema 3, this",
        ),
    ],
)
def test_damage_is_one_problem_that_names_the_file(tmp_path: Path, content: bytes, wrong: str) -> None:
    (tmp_path / "bicycle.json").write_bytes(content)

    with pytest.raises(MachineError) as raised:
        read_record(tmp_path / "bicycle.json", Bicycle)

    (problem,) = raised.value.problems
    assert problem.where.path == str(tmp_path / "bicycle.json")
    assert problem.wrong.startswith(wrong)
    assert problem.instead


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "bicycle.json").mkdir()

    with pytest.raises(MachineError, match="cannot be read: Is a directory"):
        read_record(tmp_path / "bicycle.json", Bicycle)


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_record(tmp_path / "bicycle.json", BICYCLE)

    with pytest.raises(UnicodeEncodeError):
        write_record(tmp_path / "bicycle.json", Bicycle("\ud800", ()))

    assert json.loads((tmp_path / "bicycle.json").read_text(encoding="utf-8"))["name"] == "Größe"
