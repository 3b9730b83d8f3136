"""Arguments in a notebook or a Python program: read by `ast`, never run."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastft.errors import Problem, UsageError, Where
from fastft.migration.arguments import Argument, Source

_CONFIGS = ("SFTConfig", "TrainingArguments", "UnslothTrainingArguments")
_TRAINERS = ("SFTTrainer", "UnslothTrainer", "Trainer")
_OTHER_TRAINERS = (
    "DPOTrainer",
    "ORPOTrainer",
    "KTOTrainer",
    "GRPOTrainer",
    "PPOTrainer",
    "RewardTrainer",
    "CPOTrainer",
)
_CALLS = ("get_peft_model", "get_chat_template", "save_pretrained_gguf", "save_pretrained_merged")
_OF_ROWS = ("map", "filter", "select", "shuffle", "train_test_split")
_STANDARD = ("standardize_sharegpt", "standardize_data_formats", "to_sharegpt", "apply_chat_template")


class _Unknown:
    """A value that only running the program would give."""


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class _Rows:
    """Rows that a variable holds: where they were loaded, and what was done with them."""

    path: str
    steps: tuple[Argument, ...] = ()


@dataclass
class _Reader:
    """What the statements read so far say."""

    values: dict[str, Any] = field(default_factory=dict)
    formats: set[str] = field(default_factory=set)
    arguments: list[Argument] = field(default_factory=list)
    trained: bool = False


def read_notebook(path: str, text: str) -> Source:
    """The arguments of a notebook's calls.

    Raises:
        UsageError: it is no notebook, its code is no Python, or nothing is trained.
    """
    try:
        cells = json.loads(text)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(Problem(Where(path), "", "is no notebook", "name a .ipynb file")) from None
    return _read(path, "a notebook", code)


def read_program(path: str, text: str) -> Source:
    """The arguments of a Python program's calls; raises as `read_notebook`."""
    return _read(path, "a Python program", [text])


def _read(path: str, form: str, pieces: list[str]) -> Source:
    reader, line, broken = _Reader(), 0, 0
    for piece in pieces:
        plain = "\n".join("pass" if row.startswith(("!", "%")) else row for row in piece.splitlines())
        try:
            tree = ast.parse(plain)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            broken += 1
            continue
        try:
            for statement in _statements(tree.body, reader):
                _statement(statement, reader, line)
        except RecursionError:
            wrong = "has an expression that is nested too deeply"
            raise UsageError(Problem(Where(path), "", wrong, "write its value")) from None
        line += piece.count("\n") + 1
    if broken == len(pieces):
        raise UsageError(Problem(Where(path), "", "is no Python that can be read", "correct its syntax"))
    if not any(argument.name.startswith(("from_pretrained", "config", "trainer")) for argument in reader.arguments):
        wrong = "calls neither from_pretrained nor a trainer"
        raise UsageError(Problem(Where(path), "", wrong, "name a program that trains with Unsloth or TRL"))
    return Source(path, form, "Unsloth", tuple(reader.arguments))


def _statements(body: list[ast.stmt], reader: _Reader) -> Iterator[ast.stmt]:
    """The statements that run, those in blocks too; not what stands under `if False`."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            if "apply_chat_template" in ast.unparse(node):
                reader.formats.add(node.name)
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
            yield from _statements(node.body if node.test.value else node.orelse, reader)
        elif isinstance(node, ast.If | ast.With | ast.For | ast.Try):
            yield from _statements([*node.body, *getattr(node, "orelse", [])], reader)
        else:
            yield node


def _statement(node: ast.stmt, reader: _Reader, before: int) -> None:
    """Remember what a statement assigns, and the arguments of the calls in it."""
    value = getattr(node, "value", None)
    found = UNKNOWN if value is None else _value(value, reader, before)
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    for target in targets:
        if isinstance(target, ast.Name):
            reader.values[target.id] = found


def _value(node: ast.expr, reader: _Reader, before: int) -> Any:
    """The value of an expression of constants and known names; UNKNOWN for any other."""
    if isinstance(node, ast.Call):
        return _call(node, reader, before)
    if isinstance(node, ast.Name):
        return reader.values.get(node.id, UNKNOWN)
    if isinstance(node, ast.Subscript):  # dataset["train"]
        held = _value(node.value, reader, before)
        return held if isinstance(held, _Rows) else UNKNOWN
    if isinstance(node, ast.Attribute):
        return node.attr if ast.unparse(node.value) == "torch" else UNKNOWN
    if isinstance(node, ast.List | ast.Tuple):
        parts = [_value(part, reader, before) for part in node.elts]
        return UNKNOWN if any(part is UNKNOWN for part in parts) else parts
    if isinstance(node, ast.BinOp):
        return _product(node, reader, before)
    return _constant(node)


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.UnaryOp) and "bf" in ast.unparse(node) and "supported" in ast.unparse(node):
        return "auto"
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


def _product(node: ast.BinOp, reader: _Reader, before: int) -> Any:
    left, right = _value(node.left, reader, before), _value(node.right, reader, before)
    # Nobody writes a setting above 2**63, and digits without end would take time and memory.
    if not all(type(part) in (int, float) and abs(part) < 2**63 for part in (left, right)):
        return UNKNOWN
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.FloorDiv | ast.Div) and right:
        return left // right if isinstance(node.op, ast.FloorDiv) else left / right
    return left + right if isinstance(node.op, ast.Add) else left - right if isinstance(node.op, ast.Sub) else UNKNOWN


def _call(node: ast.Call, reader: _Reader, before: int) -> Any:
    whole, line = ast.unparse(node.func), before + node.lineno
    name = whole.rsplit(".", 1)[-1]
    if "bf" in name and "supported" in name:
        return "auto"
    if name == "load_dataset":
        return _loaded(node, reader, before)
    # What is inside a call runs first: its arguments, and the rows that it works on.
    positional = [_value(part, reader, before) for part in node.args]
    given = {part.arg: _value(part.value, reader, before) for part in node.keywords if part.arg}
    owner = _value(node.func.value, reader, before) if isinstance(node.func, ast.Attribute) else UNKNOWN
    rows = next((part for part in (owner, *positional) if isinstance(part, _Rows)), None)
    if rows is not None and name in (*_OF_ROWS, *_STANDARD):
        formats = name == "map" and any(ast.unparse(part) in reader.formats for part in node.args)
        said = "apply_chat_template" if formats else name
        return _Rows(rows.path, (*rows.steps, Argument(said, ast.unparse(node)[-60:], line)))
    _remember(name, whole, given, positional, reader, line)
    return UNKNOWN


def _remember(name: str, whole: str, given: dict[str, Any], positional: list[Any], reader: _Reader, line: int) -> None:
    """Add the arguments of a call that says what is trained."""
    if name in _OTHER_TRAINERS:
        reader.arguments.append(Argument("trainer", name, line))
    if name == "train_on_responses_only":
        reader.arguments.append(Argument(name, True, line))
    loads = name == "from_pretrained" and "Fast" in whole and not reader.trained
    if loads and "Vision" in whole:
        reader.arguments.append(Argument("FastVisionModel", True, line))
    groups = ((_CALLS, name), (_CONFIGS, "config"), (_TRAINERS, "trainer"))
    prefix = name if loads else next((prefix for names, prefix in groups if name in names), None)
    if prefix is None:
        return
    if loads and positional and "model_name" not in given:
        given = {"model_name": positional[0], **given}
    for argument, value in given.items():
        reader.arguments += _given(f"{prefix}.{argument}", value, line)
    reader.trained |= prefix == "trainer"


def _given(name: str, value: Any, line: int) -> list[Argument]:
    """One argument of a call; for rows, where they come from and what was done with them."""
    if name.endswith(".train_dataset"):
        return _rows_of(value, line)
    if isinstance(value, _Rows):
        return [Argument("load_dataset.eval", value.path, line)]
    return [Argument(name, value, line)]


def _rows_of(value: Any, line: int) -> list[Argument]:
    if not isinstance(value, _Rows):
        return [Argument("rows", UNKNOWN, line)]
    return [Argument("load_dataset.train", value.path, line), *value.steps]


def _loaded(node: ast.Call, reader: _Reader, before: int) -> Any:
    """`load_dataset(path, name, split=, data_files=)` as a source of a recipe."""
    from fastft.migration.tables.datasets import hub

    parts = [_value(part, reader, before) for part in node.args]
    given = {part.arg: _value(part.value, reader, before) for part in node.keywords}
    path = parts[0] if parts else given.get("path", UNKNOWN)
    files = given.get("data_files")
    if isinstance(path, str) and path in ("json", "csv", "parquet"):
        path = files if isinstance(files, str) else UNKNOWN
        return _Rows(path) if isinstance(path, str) else UNKNOWN
    configuration = parts[1] if len(parts) > 1 else given.get("name")
    split = given.get("split")
    known = all(part is None or isinstance(part, str) for part in (configuration, split))
    return _Rows(hub(path, configuration, split)) if isinstance(path, str) and known else UNKNOWN
