"""The shape of fastft/ as data: who may import whom, no circles, and how large a module or a function may be."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.complexity import MOST, too_complex

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastft"

# Each layer imports itself and the layers above it in this list. Two names in one line do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("console",),
    ("errors", "engine_choice"),
    ("recipe", "files"),
    ("data", "migration"),
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
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
ENGINE_ONLY = {"torch", "unsloth", "unsloth_zoo", "trl", "transformers", "peft"}
TOP_MODULES = 6
LONGEST = 450
# What may take or give a dict of Any between folders, because it stands at an edge to JSON; all else takes records.
AT_A_JSON_EDGE = {
    "as_json": "writes a record",
    "from_json": "reads a record",
    "read_json": "any JSON file",
    "write_json": "any JSON file",
    "reject_record": "a line of rejects.jsonl",
    "schema": "the JSON schema of a recipe",
    "config": "config.json of a base model, in the names of Hugging Face",
    "architecture_of": "config.json of a base model, in the names of Hugging Face",
    "from_config": "config.json of a base model, in the names of Hugging Face",
    "read_config": "config.json of a base model, in the names of Hugging Face",
    "read_model_config": "the same",
    "read_object": "any JSON file of a model, in the names of Hugging Face",
    "stopping_ids": "generation_config.json, in the names of Hugging Face",
    "as_template_value": "what chat templates are given",
    "extra": "what chat templates are given besides role and content, as the row has it",
    "tools": "what chat templates are given: JSON schemas of functions, as the row has them",
    "render": "what chat templates are given: JSON schemas of functions, as the row has them",
}
# The one source of validation, defaults, schema and docs: a field is a few lines, and there are many.
MAY_BE_LONGER = {"recipe/model.py"}


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


def test_no_module_waits_for_itself_to_be_imported() -> None:
    assert circle(edges(PACKAGE, by_folder=False)) == []


def test_no_folder_needs_one_that_needs_it() -> None:
    assert circle(edges(PACKAGE, by_folder=True)) == []


def test_few_modules_stand_at_the_top() -> None:
    top = {path.name for path in PACKAGE.glob("*.py")}

    assert len(top) <= TOP_MODULES, top


def test_no_file_is_too_long() -> None:
    assert too_long(PACKAGE) == []


def test_no_function_is_too_complex() -> None:
    assert too_complex(PACKAGE) == []


def test_own_modules_are_imported_by_statements_alone() -> None:
    assert hidden_imports(PACKAGE) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_records_pass_between_folders_not_dicts(folder: str) -> None:
    assert [place for place in dicts_between_folders(PACKAGE) if place.startswith(f"{folder}/")] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_choice_of_the_plan_is_a_field_not_a_key(folder: str) -> None:
    assert [place for place in keyed_choices(PACKAGE) if place.startswith(f"{folder}/")] == []


@pytest.mark.parametrize(
    ("definition", "found"),
    [
        ("def f(x: dict[str, Any]) -> int: ...", True),
        ("def f() -> tuple[int, Mapping[str, Any]]: ...", True),
        ("class f:\n    def method(self, x: list[dict[str, Any]]) -> int: ...", True),
        ("@dataclass\nclass f:\n    x: dict[str, Any]", True),
        ("def f(x: Callable[[dict[str, Any]], None]) -> Any: ...", True),
        ("def f(x: dict[str, int]) -> Any: ...", False),
        ("def _private(x: dict[str, Any]) -> Any: ...", False),
        ("def read_json(x: dict[str, Any]) -> int: ...", False),
        ("def of_this_folder(x: dict[str, Any]) -> int: ...", False),
    ],
)
def test_a_dict_between_folders_is_found(tmp_path: Path, definition: str, found: bool) -> None:
    write(tmp_path, {"data/a.py": definition, "runs/b.py": "from fastft.data.a import f, read_json"})
    write(tmp_path, {"data/c.py": "from fastft.data.a import of_this_folder"})

    assert bool(dicts_between_folders(tmp_path)) == found


@pytest.mark.parametrize("line", ["plan.choices['train.packing']", "self.plan.choices[name]", "choices['a'].value"])
def test_a_choice_by_its_key_is_found(tmp_path: Path, line: str) -> None:
    write(tmp_path, {"data/a.py": line})

    assert keyed_choices(tmp_path) == ["data/a.py:1"]


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"data/a.py": "import fastft.data.b", "data/b.py": "from fastft.data import a"}, ["data.a", "data.b"]),
        ({"data/a.py": "from .b import x", "data/b.py": "from fastft.data.a import y"}, ["data.a", "data.b"]),
        ({"data/a.py": "if 1:\n    import fastft.data.b", "data/b.py": "import fastft.data.a"}, ["data.a", "data.b"]),
        ({"data/a.py": "def late():\n    import fastft.data.b", "data/b.py": "import fastft.data.a"}, []),
        ({"data/a.py": "if TYPE_CHECKING:\n    import fastft.data.b", "data/b.py": "import fastft.data.a"}, []),
    ],
)
def test_a_circle_of_modules_is_found(tmp_path: Path, planted: Mapping[str, str], found: list[str]) -> None:
    write(tmp_path, planted)

    assert sorted(circle(edges(tmp_path, by_folder=False))) == found


def test_a_circle_of_folders_is_found(tmp_path: Path) -> None:
    # No circle of modules: data.a needs probe.b, probe.c needs data.d.
    write(tmp_path, {"data/a.py": "import fastft.probe.b", "probe/c.py": "from fastft.data.d import x"})
    write(tmp_path, {"data/d.py": "", "probe/b.py": ""})

    assert circle(edges(tmp_path, by_folder=False)) == []
    assert sorted(circle(edges(tmp_path, by_folder=True))) == ["data", "probe"]


def test_a_file_that_is_too_long_is_found(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.py": "x = 1\n" * (LONGEST + 1), "data/b.py": "x = 1\n" * LONGEST})

    assert too_long(tmp_path) == [f"data/a.py: {LONGEST + 1} lines"]


@pytest.mark.parametrize("form", ["def f(x):\n{}", "class C:\n    def f(self, x):\n{}", "def g():\n    def f(x):\n{}"])
def test_a_function_that_is_too_complex_is_found(tmp_path: Path, form: str) -> None:
    branches = "        if x: pass\n"
    write(tmp_path, {"a.py": form.format(branches * MOST), "b.py": f"def f(x):\n{branches * (MOST - 1)}"})

    assert [line.split(":")[0] for line in too_complex(tmp_path)] == ["a.py"]


@pytest.mark.parametrize(
    "line",
    [
        "importlib.import_module('fastft.engine.train')",
        "import_module(f'fastft.{name}')",
        "importlib.import_module('.train', 'fastft.engine')",
        "importlib.import_module(name)",
        "__import__('fastft.cli')",
    ],
)
def test_an_own_module_that_is_imported_by_its_name_is_found(tmp_path: Path, line: str) -> None:
    write(tmp_path, {"data/a.py": line})

    assert hidden_imports(tmp_path) == ["data/a.py:1"]


def test_another_module_may_be_imported_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.py": "importlib.import_module('torch')"})

    assert hidden_imports(tmp_path) == []


def write(package: Path, sources: Mapping[str, str]) -> None:
    """Modules of a made-up package."""
    for name, source in sources.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(source, encoding="utf-8")


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


def edges(package: Path, *, by_folder: bool) -> dict[str, set[str]]:
    """Each module, or each folder, and what it needs of fastft.

    For a module that is what Python imports with it: not inside functions, not for the type checker. A folder needs
    whatever is named anywhere in it.
    """
    modules = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    names = {_dotted(module) for module in modules}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        tree = _tree(path)
        own = _dotted(module)
        for node in ast.walk(tree) if by_folder else _at_import_time(tree.body):
            for name in _names(node, module):
                # `from fastft.a import b` names the module a.b, or something in a.
                other = next((part for part in _prefixes(name) if part in names), None)
                if other is None:
                    continue
                one, two = (own.split(".")[0], other.split(".")[0]) if by_folder else (own, other)
                if one != two:
                    found.setdefault(one, set()).add(two)
    return found


def circle(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """The names of one circle, in order, or none."""
    sound: set[str] = set()

    def follow(path: list[str]) -> list[str]:
        for name in needs.get(path[-1], ()):
            if name in path:
                return path[path.index(name) :]
            if name not in sound and (found := follow([*path, name])):
                return found
        sound.add(path[-1])
        return []

    return next((found for name in needs if name not in sound and (found := follow([name]))), [])


def _at_import_time(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run while a module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _at_import_time(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _at_import_time(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def _dotted(module: Path) -> str:
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


def _prefixes(name: str) -> list[str]:
    """`fastft.a.b.c` as a.b.c, a.b, a."""
    parts = name.split(".")[1:] if name.split(".")[0] == "fastft" else []
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def too_long(package: Path) -> list[str]:
    """Each file of more than LONGEST lines that is none of MAY_BE_LONGER."""
    lengths = {
        path.relative_to(package): len(path.read_text(encoding="utf-8").splitlines()) for path in _files(package)
    }
    return [
        f"{name}: {length} lines"
        for name, length in lengths.items()
        if length > LONGEST and str(name) not in MAY_BE_LONGER
    ]


def hidden_imports(package: Path) -> list[str]:
    """file:line of each import of a module of fastft, or of one that no reader knows, by its name in a call."""
    found = []
    for path in _files(package):
        for node in ast.walk(_tree(path)):
            called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            if called in ("import_module", "__import__") and isinstance(node, ast.Call):
                name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                if not isinstance(name, str) or name.startswith((".", "fastft")):
                    found.append(f"{path.relative_to(package)}:{node.lineno}")
    return found


def dicts_between_folders(package: Path) -> list[str]:
    """file: name of each function, field or public method that another folder can reach and that has a dict of Any."""
    imported = {name.removeprefix("fastft.") for module, name in imports(package) if not _in_folder(name, module)}
    found = []
    for path in _files(package):
        module = path.relative_to(package)
        for node in _tree(path).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name[0] == "_":
                continue
            # Imported by its own name, or with the whole module.
            if {f"{_dotted(module)}.{node.name}", _dotted(module)} & imported:
                found += [f"{module}: {name}" for name in _with_dicts(node)]
    return found


def _in_folder(name: str, module: str) -> bool:
    return name.split(".")[1:2] == [Path(module).parts[0]]


def _with_dicts(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """The name of a function that has a dict of Any in its signature; of a class, its fields and methods that have."""
    parts: list[ast.stmt] = node.body if isinstance(node, ast.ClassDef) else [node]
    found = []
    for part in parts:
        if isinstance(part, ast.FunctionDef):
            arguments = [*part.args.posonlyargs, *part.args.args, *part.args.kwonlyargs]
            name, annotations = part.name, [*(argument.annotation for argument in arguments), part.returns]
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            name, annotations = part.target.id, [part.annotation]
        else:
            continue
        if name[0] != "_" and name not in AT_A_JSON_EDGE and any(map(_is_dict, annotations)):
            found.append(name if part is node else f"{node.name}.{name}")
    return found


def _is_dict(annotation: ast.expr | None) -> bool:
    return annotation is not None and bool(re.search(r"(dict|Mapping)\[str, Any\]", ast.unparse(annotation)))


def keyed_choices(package: Path) -> list[str]:
    """file:line of each choice of a plan that is looked up by a key."""
    found = []
    for path in _files(package):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] == "choices":
                found.append(f"{path.relative_to(package)}:{node.lineno}")
    return found


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def imports(package: Path) -> Iterator[tuple[str, str]]:
    """(module file, dotted name) for each import in a package, those inside functions and by importlib too."""
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package)
        for node in ast.walk(_tree(path)):
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
