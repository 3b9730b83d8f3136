"""What is generated is what the program says now."""

from __future__ import annotations

import pytest

from tests.docs import FOLDER, pages


@pytest.mark.parametrize("name", pages())
def test_a_generated_page_is_what_the_program_says(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "stale: run `make docs`"


def test_the_command_page_tells_every_command() -> None:
    page = pages()["cli.md"]

    for command in ("run", "check", "plan", "explain", "init", "schema", "doctor"):
        assert f"Usage: fastft {command} " in page
