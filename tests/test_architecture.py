"""Who may import whom: the layers as data, compared with every import in fastft/."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastft"

# Each layer imports itself and the layers above it in this list. Two names in one line do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "engine_choice"),
    ("console",),
    ("recipe", "files"),
    ("data",),
    ("probe",),
    ("inference",),
    ("planning",),
    ("exports",),
    ("runs",),
    ("engine", "report"),
    ("stages",),
    ("commands",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
ENGINE_ONLY = {"torch", "unsloth", "unsloth_zoo", "trl", "transformers", "peft"}


def test_every_module_has_a_layer() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}

    assert parts == {name for layer in LAYERS for name in layer}


def test_lower_layers_know_nothing_of_higher_ones() -> None:
    assert wrong_imports(PACKAGE) == []


def test_only_the_engine_imports_the_training_libraries() -> None:
    assert heavy_imports(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("errors.py", "from fastft.recipe.model import Recipe"),
        ("data/readers.py", "import fastft.probe.device"),
        ("planning/schedule.py", "def late():\n    from fastft.runs.directory import RunDir"),
        ("planning/disk.py", "from .. import cli"),
        ("report/live.py", "import importlib\nimportlib.import_module('fastft.engine.train')"),
        ("recipe/rules.py", "from fastft.planning import check"),
    ],
)
def test_an_import_that_breaks_the_layers_is_found(tmp_path: Path, module: str, line: str) -> None:
    plant(tmp_path, module, line)

    assert [place for place, _ in wrong_imports(tmp_path)] == [module]


@pytest.mark.parametrize("line", ["import torch.nn", "def late():\n    from transformers import Trainer"])
def test_a_training_library_outside_the_engine_is_found(tmp_path: Path, line: str) -> None:
    plant(tmp_path, "console.py", line)

    assert [place for place, _ in heavy_imports(tmp_path)] == ["console.py"]


def plant(package: Path, module: str, line: str) -> None:
    """A copy of one module of fastft in `package`, with one line more."""
    planted = package / module
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(f"{(PACKAGE / module).read_text()}\n{line}\n")


def wrong_imports(package: Path) -> list[tuple[str, str]]:
    """(module, import) for each import of fastft that its layer must not make."""
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for module, name in imports(package):
        # The version is a fact that every layer may state.
        if name.split(".")[0] != "fastft" or name == "fastft.__version__":
            continue
        own, other = _part(Path(module).parts[0]), _part([*name.split("."), "__init__"][1])
        # `from fastft import __version__` names no module.
        other = other if other in rank else "__init__"
        if own != other and rank[other] >= rank[own]:
            wrong.append((module, name))
    return wrong


def heavy_imports(package: Path) -> list[tuple[str, str]]:
    """(module, import) for each import of a training library outside fastft/engine."""
    return [
        (module, name)
        for module, name in imports(package)
        if name.split(".")[0] in ENGINE_ONLY and Path(module).parts[0] != "engine"
    ]


def imports(package: Path) -> Iterator[tuple[str, str]]:
    """(module file, dotted name) for each import in a package, those inside functions and by importlib too."""
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _names(node, module):
                yield str(module), name


def _names(node: ast.AST, module: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        # `from ..x import y` in fastft/a/b.py starts from fastft.
        base = ["fastft", *module.parts[:-1]][: len(module.parts) + 1 - node.level] if node.level else []
        start = ".".join([*base, *([node.module] if node.module else [])])
        return [f"{start}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def _part(name: str) -> str:
    return name.removesuffix(".py")
