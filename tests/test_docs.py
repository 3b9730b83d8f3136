"""Generated pages match the program."""

from __future__ import annotations

import pytest

from tests.docs import FOLDER, pages


@pytest.mark.parametrize("name", pages())
def test_a_generated_page_is_current(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "stale: run `make docs`"


def test_the_command_page_documents_every_command() -> None:
    page = pages()["cli.md"]

    for command in ("run", "check", "plan", "explain", "init", "schema", "doctor"):
        assert f"Usage: fastft {command} " in page
