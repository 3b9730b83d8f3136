"""docs/extending.md names files and symbols that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
# `path` or `path: Symbol`.
PLACES = re.findall(r"`((?:fastft|tests)/[\w./]+)(?:: (\w+))?`", PAGE)
ADDITIONS = (
    "an optimizer",
    "a gguf quantization",
    "a gguf architecture",
    "a data format",
    "a chat template",
    "a device",
    "a task",
    "an engine",
)


@pytest.mark.parametrize("addition", ADDITIONS)
def test_each_addition_names_a_place(addition: str) -> None:
    sections = {part.split("\n")[0].lower(): part for part in PAGE.split("\n## ")[1:]}

    assert re.search(r"^- `fastft/", sections[addition], re.MULTILINE)


@pytest.mark.parametrize(("path", "symbol"), sorted(set(PLACES)), ids=lambda value: value or "-")
def test_each_place_is_there(path: str, symbol: str) -> None:
    assert (ROOT / path).exists()
    assert not symbol or symbol in defined(ROOT / path)


def test_a_symbol_that_is_not_there_would_be_seen() -> None:
    assert "OPTIMISERS" not in defined(ROOT / "fastft/recipe/model.py")
    assert {"Recipe", "TrainSection"} <= defined(ROOT / "fastft/recipe/model.py")


def test_every_place_is_written_so_that_it_is_checked() -> None:
    assert len(PLACES) == len(re.findall(r"\w+/\w+[\w/]*\.py|fastft/[\w/]+/`", PAGE))


def defined(file: Path) -> set[str]:
    """The names that a module defines at its top."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names
