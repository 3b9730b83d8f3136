"""Whether answers have a format: JSON, YAML, a JSON schema or a regular expression, in a process with limits."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.data.limited import run_limited
from fastft.recipe.model import EvalSection

# Texts of one process. A longer answer is cut, and so is hardly valid.
TOGETHER, LONGEST = 100, 20_000


@dataclass(frozen=True)
class AnswerFormat:
    """What every answer should be: `form` ("json" or "yaml"), a text that `pattern` matches as a whole, or data that a
    JSON schema (its text) allows, written in `form` or else in JSON."""

    form: str | None = None
    pattern: str | None = None
    schema: str | None = None

    def __bool__(self) -> bool:
        return any((self.form, self.pattern, self.schema))


def wanted_format(section: EvalSection, folder: Path) -> AnswerFormat:
    """What a recipe in `folder` wants of answers; its schema as it is in the file now.

    Raises:
        OSError, UnicodeDecodeError: the file of the schema cannot be read.
    """
    name = section.answer_schema
    schema = None if name is None else (folder / name).read_text(encoding="utf-8")
    return AnswerFormat(section.answer_format, section.answer_pattern, schema)


def valid_answers(answers: Sequence[str], wanted: AnswerFormat) -> list[bool]:
    """Of each answer, whether it is as wanted; one that needs more than `run_limited` allows is not."""
    found: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.txt"
        while len(found) < len(answers):
            texts = [text[:LONGEST] for text in answers[len(found) : len(found) + TOGETHER]]
            out.write_text("", encoding="utf-8")
            run_limited(check_answers, {"texts": texts, "out": str(out), **dataclasses.asdict(wanted)})
            marks = out.read_text(encoding="utf-8")
            found += [mark == "1" for mark in marks]
            if len(marks) < len(texts):
                found.append(False)  # the one that the process ended in
    return found


def check_answers(task: dict[str, Any]) -> None:
    """Write 1 or 0 for each text to the file `out`, at once; only in a limited process."""
    wanted = AnswerFormat(task["form"], task["pattern"], task["schema"])
    validator = None if wanted.schema is None else _validator(json.loads(wanted.schema))
    with Path(task["out"]).open("w", encoding="utf-8") as file:
        for text in task["texts"]:
            file.write("1" if _is_valid(text, wanted, validator) else "0")
            file.flush()


def schema_fault(text: str) -> str | None:
    """What is wrong with the text of a JSON schema; None where nothing is, as far as this machine can tell."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    if not isinstance(schema, dict):
        return "is no JSON object"
    if importlib.util.find_spec("jsonschema") is None:  # it comes with what a run needs
        return None
    from jsonschema.exceptions import SchemaError

    try:
        _validator(schema).check_schema(schema)
    except SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path)
        return f"is no JSON schema: {error.message}" + f" (at {place})" * bool(place)
    return None


def _validator(schema: Mapping[str, Any]) -> Any:
    """What checks data, and fetches nothing: without a registry of its own it would load references from anywhere."""
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    return validator_for(schema, default=Draft202012Validator)(schema, registry=EMPTY_REGISTRY)


def _is_valid(text: str, wanted: AnswerFormat, validator: Any) -> bool:
    if wanted.pattern is not None:
        return re.fullmatch(wanted.pattern, text) is not None
    try:
        value = _read_yaml(text) if wanted.form == "yaml" else json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    if validator is None:
        return True
    from referencing.exceptions import Unresolvable

    try:
        return bool(validator.is_valid(value))
    except (Unresolvable, RecursionError):  # a reference to another file, or to itself
        return False


def _read_yaml(text: str) -> Any:
    """The mapping or list of a YAML text.

    Raises:
        ValueError: it is no YAML.
        TypeError: it is neither, but any text is a YAML string.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(value, dict | list):
        raise TypeError(type(value).__name__)
    return value
