"""The commands of docs/csv_to_ollama.md that need no training do what the page says; the keys of docs/loss.md exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.recipe.reference import fields

DOCS = Path(__file__).parents[1] / "docs"


def test_a_csv_becomes_a_recipe_by_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "csv_to_ollama.md").read_text(encoding="utf-8")
    rows = re.search(r"```csv\n(.*?)```", page, re.DOTALL)
    commands = re.search(r"```bash\n(.*?)```", page, re.DOTALL)
    assert rows
    assert commands
    monkeypatch.chdir(tmp_path)
    Path("faq.csv").write_text(rows[1] + rows[1].split("\n", 1)[1] * 9)

    for line in commands[1].splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code, line


def test_the_page_about_losses_names_keys_that_exist() -> None:
    page = (DOCS / "loss.md").read_text(encoding="utf-8")
    known = {name for field in fields() for name in (field, field.split(".")[1])}
    named = {match.split(" ")[0] for match in re.findall(r"`([a-z][\w.]*(?: = [^`]+)?)`", page)} - {"report.html"}

    assert named <= known
