"""For every recipe in bad_recipes/ the message says exactly what is wrong, on the line where it is wrong.

The line that a message must name carries `# expect: <part of the message>`. Where the fault is in a file that the
recipe names, the comment is on the line of the recipe that names it, and begins with that file and its line.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastft.errors import FastftError, Problem
from fastft.planning.check import check
from fastft.recipe.loader import load

FOLDER = Path(__file__).with_name("bad_recipes")
RECIPES = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_message_for_a_bad_recipe_says_what_is_wrong_and_where(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    expected = _expectations(recipe.name)
    with pytest.raises(FastftError) as caught:
        check(load(Path(recipe.name)))
    messages = {_line(problem, recipe.name, expected): str(problem) for problem in caught.value.problems}
    assert sorted(messages, key=str) == sorted(expected, key=str), "\n".join(messages.values())
    for line, part in expected.items():
        assert part in messages[line]
    assert caught.value.exit_code == (3 if recipe.name.startswith("data_") else 2)


def _expectations(name: str) -> dict[int | None, str]:
    """Line -> what its message must contain."""
    found: dict[int | None, str] = {}
    for number, line in enumerate(Path(name).read_text().splitlines(), start=1):
        if "# expect: " in line:
            found[number] = line.split("# expect: ", 1)[1].strip()
    return found


def _line(problem: Problem, recipe: str, expected: dict[int | None, str]) -> int | None:
    """The line of the recipe that a problem names; for one of another file, the line that expects it."""
    if problem.where.path == recipe:
        return problem.where.line
    return next((line for line, part in expected.items() if re.match(re.escape(f"{problem.where}:"), part)), None)
