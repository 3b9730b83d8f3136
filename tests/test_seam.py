"""The seam between the light side and the engine: mypy refuses a call into the engine with wrong arguments."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The calls into the engine: the function, and where it is called once.
TRAIN = ("train", "fastft/stages/*.py")
EXPORT = ("export_weights", "fastft/commands/export.py")
REFERENCE = ("trained_reference", "fastft/commands/export.py")
# The places of the two arguments that are swapped; None: the first of them is left out.
FAULTS: list[tuple[tuple[str, str], int, int | None]] = [
    (TRAIN, 0, 3),
    (TRAIN, 1, 2),
    (TRAIN, 1, 3),
    (TRAIN, 6, None),
    (EXPORT, 0, 1),
    (EXPORT, 2, None),
    (REFERENCE, 0, 1),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of fastft that mypy has read and found sound; its cache makes each later look take half a second."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "fastft", folder / "fastft", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    assert refused(folder) == set()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("call", "first", "second"), FAULTS)
def test_a_wrong_argument_of_a_call_into_the_engine_is_refused(
    copy: Path, call: tuple[str, str], first: int, second: int | None
) -> None:
    """Only mypy itself can show that it sees through the seam: 6 s for the whole of fastft, then 0.4 s a fault."""
    function, where = call
    (file,) = (file for file in copy.glob(where) if calls(file.read_text(encoding="utf-8"), function))
    sound = file.read_text(encoding="utf-8")
    file.write_text(planted(sound, function, first, second), encoding="utf-8")
    try:
        assert refused(copy) == {str(file.relative_to(copy))}
    finally:
        file.write_text(sound, encoding="utf-8")


def planted(source: str, function: str, first: int, second: int | None) -> str:
    """`source`, in whose only call of `function` an argument changes places with another, or is left out."""
    (call,) = calls(source, function)
    if second is None:
        del call.args[first]
    else:
        call.args[first], call.args[second] = call.args[second], call.args[first]
    lines = source.splitlines()
    before, after = lines[call.lineno - 1][: call.col_offset], lines[(call.end_lineno or 0) - 1][call.end_col_offset :]
    lines[call.lineno - 1 : call.end_lineno] = [f"{before}{ast.unparse(call)}{after}"]
    return "\n".join(lines) + "\n"


def calls(source: str, function: str) -> list[ast.Call]:
    """The calls of `function`, by its own name or as a member of a module."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [node for node in found if function in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))]


def refused(folder: Path) -> set[str]:
    """The files of fastft that mypy finds errors in."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", "fastft"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 2: mypy could not run
    return {line.split(":")[0] for line in done.stdout.splitlines() if " error: " in line}
