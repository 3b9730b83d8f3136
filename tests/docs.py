"""Generate docs/reference from the program: `python -m tests.docs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fastft.cli import app
from fastft.recipe.reference import recipe_page, schema

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def pages() -> dict[str, str]:
    """File name -> text of each page."""
    return {
        "recipe.md": recipe_page(),
        "cli.md": cli_page(),
        "recipe.schema.json": json.dumps(schema(), indent=2) + "\n",
    }


def cli_page() -> str:
    """docs/reference/cli.md: the help of every command, in 100 columns."""
    parts = ["# Command reference", "Made by `make docs`; do not edit."]
    for name, text in _helps():
        parts += [f"## {name}", f"```text\n{text.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _helps() -> Iterator[tuple[str, str]]:
    program: Any = typer.main.get_command(app)
    top = program.make_context("fastft", [], resilient_parsing=True, terminal_width=100, max_content_width=100)
    yield "fastft", program.get_help(top)
    for name, command in program.commands.items():
        context = command.make_context(name, [], parent=top, resilient_parsing=True)
        yield f"fastft {name}", command.get_help(context)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
