"""`import fastft`: what it offers, that it is light, and that its functions are the commands."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastft

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")
SIGNATURES = {
    "load": "(recipe, overrides=())",
    "check": "(recipe, overrides=())",
    "plan": "(recipe, overrides=(), *, device=None, memory=None, price_per_hour=None, runs_dir='runs')",
    "run": "(recipe, overrides=(), *, runs_dir='runs', resume=False, fresh=False)",
    "export": "(path, formats=('gguf',), quantization=(), *, out=None, base=None)",
}


def example(number: int) -> str:
    """The Python of docs/python.md."""
    return PAGE.split("```python\n")[number + 1].split("```")[0]


def test_what_is_offered_is_what_is_there() -> None:
    program = "import fastft; print(*sorted(name for name in vars(fastft) if not name.startswith('_')))"

    # Of other modules it has what its signatures name.
    assert set(python(program).split()) == {*fastft.__all__, "annotations", "Path", "Sequence", "TYPE_CHECKING"}


def test_importing_it_loads_none_of_the_program() -> None:
    program = """
import sys
before = {name.split(".")[0] for name in sys.modules}
import fastft
new = {name for name in sys.modules if name.split(".")[0] not in before | sys.stdlib_module_names}
print(*sorted(new))
"""
    assert python(program).split() == ["fastft", "fastft.errors"]


@pytest.mark.parametrize("name", SIGNATURES)
def test_each_function_has_the_arguments_that_the_page_names(name: str) -> None:
    signature = inspect.signature(getattr(fastft, name))
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]

    assert str(inspect.Signature(bare)) == SIGNATURES[name]
    assert f"`{name}{SIGNATURES[name]}`".replace("'", '"') in PAGE


def test_a_broken_recipe_names_its_line() -> None:
    with pytest.raises(fastft.errors.RecipeError) as refused:
        fastft.load(str(ROOT / "tests/bad_recipes/unknown_key.toml"))

    assert [problem.where.line for problem in refused.value.problems] == [8]


def test_an_override_is_what_set_takes() -> None:
    recipe = ROOT / "recipes/llama31_sft.toml"

    assert fastft.load(recipe, ["train.learning_rate=0.5e-4"]).recipe.train.learning_rate == 0.5e-4


def test_a_shipped_recipe_is_planned_for_a_device_that_is_not_here(tmp_path: Path) -> None:
    made = fastft.plan(str(ROOT / "recipes/llama31_sft.toml"), device="h100", memory="40GB", runs_dir=str(tmp_path))

    assert made.device == "NVIDIA H100 80 GB, 40.0 GiB"
    assert made.run_dir == str(tmp_path / "llama31_sft")


def test_a_check_lists_the_sources() -> None:
    found = fastft.check(ROOT / "recipes/quickstart.toml")

    assert [(source.key, source.format) for source in found.sources] == [
        ("data.train", "messages"),
        ("data.eval", "messages"),
    ]


def test_weights_that_are_not_there_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(fastft.errors.FastftError, match=r"there is no such file or folder|not installed"):
        fastft.export(str(tmp_path / "none"))


def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its second half, which trains, is run in tests/engine/test_python_face.py."""
    monkeypatch.chdir(ROOT)

    exec(example(0), {})  # noqa: S102  our own page

    said = capsys.readouterr().out
    assert said.startswith("0.0001\ndata.train messages\n")
    assert "--set train.learning_rate=fast train.learning_rate" in said


def python(program: str) -> str:
    """What `program` prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True).stdout
