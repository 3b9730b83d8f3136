from __future__ import annotations

from pathlib import Path

import pytest

from fastft.errors import MachineError, RecipeError
from fastft.exports.gguf.checkout import SCRIPT, convert_with_checkout

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).write_text(sys.argv[1])"


def checkout(folder: Path, program: str) -> Path:
    folder.mkdir()
    (folder / SCRIPT).write_text(program, encoding="utf-8")
    return folder


def test_the_converter_of_the_checkout_gets_the_merged_folder(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    place = checkout(tmp_path / "llama.cpp", WRITES)
    out = convert_with_checkout(tmp_path / "merged", tmp_path / "out.gguf", "f16", place)
    assert out.read_text(encoding="utf-8") == str(tmp_path / "merged")


def test_a_converter_that_fails_leaves_nothing_and_is_quoted(tmp_path: Path) -> None:
    place = checkout(tmp_path / "llama.cpp", "import sys; sys.exit('model not supported')")
    with pytest.raises(MachineError, match="exit code 1: model not supported"):
        convert_with_checkout(tmp_path, tmp_path / "out.gguf", "f16", place)
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


@pytest.mark.parametrize(("folder", "kind", "named"), [("empty", "f16", SCRIPT), ("llama.cpp", "q4_k_m", "q4_k_m")])
def test_what_the_converter_cannot_do_is_refused(tmp_path: Path, folder: str, kind: str, named: str) -> None:
    checkout(tmp_path / "llama.cpp", WRITES)
    with pytest.raises(RecipeError, match=named):
        convert_with_checkout(tmp_path, tmp_path / "out.gguf", kind, tmp_path / folder)
