from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fastft.planning.check import check
from fastft.recipe.loader import load
from fastft.recipe.reference import fields, sections
from fastft.recipe.starter import starter, starter_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "capitals.toml").write_text(starter("capitals"))
    (tmp_path / "capitals.jsonl").write_text(starter_rows())
    return tmp_path


def test_the_starter_passes_check(folder: Path) -> None:
    found = check(load(folder / "capitals.toml"))

    assert [source.format for source in found.sources] == ["messages"]


def test_the_starter_lists_every_key_under_its_section() -> None:
    found, section = [], ""
    for line in starter("capitals").splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif key := re.match(r"(?:# )?(\w+) = ", line):
            found.append(f"{section}.{key[1]}")

    assert found == list(fields())


def test_the_starter_shows_the_default_of_what_it_leaves_out(folder: Path) -> None:
    off = [line[2:] for line in starter("capitals").splitlines() if re.match(r"# \w+ = (?!\.\.\.)", line)]
    values = {key: value for line in off for key, value in tomllib.loads(line).items()}
    defaults = {key: info.default for name in sections() for key, info in sections()[name].model_fields.items()}

    assert values
    for key, value in values.items():
        assert (tuple(value) if isinstance(value, list) else value) == defaults[key]


def test_the_starter_fits_a_page() -> None:
    assert max(len(line) for line in starter("capitals").splitlines()) <= 120


def test_no_comment_of_the_starter_stops_at_an_abbreviation() -> None:
    assert [line for line in starter("capitals").splitlines() if line.endswith(" al.")] == []
