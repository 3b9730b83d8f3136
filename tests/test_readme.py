"""The README is true: its commands and files exist, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from fastft.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(README.split("```")[1::2])
COMMANDS = sorted({line.strip() for line in re.findall(r"^fastft [^#\n/]+$|^fastft [^#\n]+(?=#)", CODE, re.MULTILINE)})


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_exists_in_the_program(line: str) -> None:
    program = typer.main.get_command(app)
    _, name, *rest = shlex.split(line)

    # Fails on a command, an option or a number of arguments that does not exist.
    program.commands[name].make_context(name, rest)  # type: ignore[attr-defined]


def test_each_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)

    assert targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_each_link_leads_to_a_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tree_of_the_code_names_every_part() -> None:
    tree = README.split("## The code")[1].split("```")[1]
    parts = {path.name for path in (ROOT / "fastft").iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in (ROOT / "fastft").glob("*.py") if not path.name.startswith("__")}

    assert {name for name in parts if f"{name}/" not in tree} == set()
    assert {name for name in modules if name not in tree} == set()
