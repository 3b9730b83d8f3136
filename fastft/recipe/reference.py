"""Documentation made from the recipe model: each key's reference, `explain`, docs/reference/recipe.md, JSON schema."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fastft.errors import Problem, RecipeError, Where, nearest
from fastft.recipe.model import DataSource, Recipe, Section
from fastft.recipe.names import ELSEWHERE

LABELS = ("Unit", "On", "Off", "Too small", "Too large", "Upstream")


@dataclass(frozen=True)
class KeyReference:
    """The documentation of one key: `text` is what it does, `notes` its labelled lines in the order of LABELS."""

    field: str
    text: str
    default: str
    allowed: str
    notes: dict[str, str]

    @property
    def summary(self) -> str:
        """The first sentence of the text; "Liu et al. 2024" does not end one."""
        return re.split(r"(?<=\.) (?=[A-Z\"`])", self.text, maxsplit=1)[0]


@cache
def sections() -> dict[str, type[Section]]:
    """Section name -> its model, in the order of the recipe."""
    return {
        name: info.annotation
        for name, info in Recipe.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    }


@cache
def fields() -> dict[str, FieldInfo]:
    """`section.key` -> pydantic field, in the order of the recipe."""
    return {f"{name}.{key}": info for name, section in sections().items() for key, info in section.model_fields.items()}


@cache
def top_fields() -> dict[str, FieldInfo]:
    """The keys above all sections -> pydantic field."""
    return {name: info for name, info in Recipe.model_fields.items() if name not in sections()}


@cache
def takes_texts(field: str) -> bool:
    """Whether `section.key` takes a list of texts and no text."""
    info = fields().get(field)
    options = (
        get_args(info.annotation) if info and get_origin(info.annotation) is UnionType else (info and info.annotation,)
    )
    return str not in options and any(get_origin(option) is tuple for option in options)


@cache
def source_fields() -> dict[str, FieldInfo]:
    """`data.sources.key` -> pydantic field of a [[data.sources]] table."""
    return {f"data.sources.{key}": info for key, info in DataSource.model_fields.items()}


@cache
def reference(field: str) -> KeyReference:
    """The documentation of `section.key`, `data.sources.key` or a key above all sections.

    Raises:
        KeyError: there is no such key.
    """
    info = {**fields(), **source_fields(), **top_fields()}[field]
    lines = re.split(rf"\n(?=(?:{'|'.join(LABELS)}): )", info.description or "")
    notes = dict(line.replace("\n", " ").split(": ", 1) for line in lines[1:])
    default = "required" if info.default is PydanticUndefined else toml(info.default)
    return KeyReference(field, " ".join(lines[0].split()), default, allowed(field), notes)


def toml(value: Any) -> str:
    """A default in TOML; "not set" for None."""
    if value is None:
        return "not set"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def allowed(field: str) -> str:
    """The allowed values of `section.key`, in words: `"auto", true or false`, `a whole number, at least 1`."""
    if field in top_fields():
        return _words(_properties(Recipe)[field])
    section, key = field.rsplit(".", 1)
    return _words(_properties(DataSource if section == "data.sources" else sections()[section])[key])


@cache
def _properties(model: type[Section]) -> dict[str, Any]:
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return properties


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        choices = [_words(choice) for choice in schema["anyOf"] if choice.get("type") != "null"]
        return _either([word for choice in choices for word in choice.split(" or ")])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return _either([json.dumps(value) for value in schema["enum"]])
    kind = schema["type"]
    if kind == "array":
        items = schema.get("items", {})
        if "$ref" in items:
            return "tables, each with path and optionally " + ", ".join(
                field.rsplit(".", 1)[1] for field in list(source_fields())[1:]
            )
        return f"a list of {_words(items)}" if "enum" in items else 'a list of texts, ["like", "this"]'
    return _KINDS[kind] + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    bounds = [f"{words} {schema[key]}" for key, words in _BOUNDS.items() if key in schema]
    return ", " + " and ".join(bounds) if bounds else ""


_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": 'text in "quotes"',
    "object": 'a table of texts, { like = "this" }',
}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete TOML (Even Better TOML, taplo)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
        "title": "fastft recipe",
    }


def explain(key: str | None) -> str:
    """What a key does, in Markdown: `section.key`, a bare key, a section, or, with None, the sections.

    Raises:
        RecipeError: there is no such key; the message names the nearest one.
    """
    if key is None:
        width = max(len(name) for name in sections()) + 2
        lines = [
            f"{f'[{name}]':<{width}}  {' '.join((model.__doc__ or '').split())}" for name, model in sections().items()
        ]
        return "\n".join(
            [*lines, "", "`fastft explain train` lists a section's keys, `fastft explain lora.r` explains one key."]
        )
    if key in sections():
        rows = [field for field in fields() if field.startswith(key + ".")]
        width = max(len(field) for field in rows)
        return "\n".join(f"{field:<{width}}  {reference(field).summary}" for field in rows)
    known = (*top_fields(), *fields(), *source_fields())
    matches = [field for field in known if key in (field, field.rpartition(".")[2])]
    if not matches:
        raise RecipeError(_unknown(key))
    return "\n\n".join(_page(field) for field in matches)


def _page(field: str) -> str:
    entry = reference(field)
    lines = [field, "", *textwrap.wrap(entry.text, 100), ""]
    notes = {"Default": entry.default, "Allowed": entry.allowed, **entry.notes}
    width = max(len(label) for label in notes)
    for label, text in notes.items():
        wrapped = textwrap.wrap(text, 98 - width)
        lines += [f"{label:<{width}}  {wrapped[0]}", *(f"{'':<{width}}  {line}" for line in wrapped[1:])]
    return "\n".join(lines)


def _unknown(key: str) -> Problem:
    bare = key.rsplit(".", 1)[-1]
    here = ELSEWHERE.get(bare)
    known = (*fields(), *source_fields())
    names = {**{field: field for field in known}, **{field.rsplit(".", 1)[1]: field for field in known}}
    close = here or names.get(nearest(bare, names) or "")
    instead = f"did you mean {close}?" if close else "`fastft explain` lists the sections"
    return Problem(Where("explain"), "", "there is no such key", instead, key)


def recipe_page() -> str:
    """docs/reference/recipe.md: every key of every section."""
    lines = [
        "# Recipe reference",
        "",
        "Made by `make docs`; do not edit. Each `##` heading is a section of the recipe.",
        "",
        *(line for field in top_fields() for line in _entry(field)),
    ]
    for section, model in sections().items():
        lines += [f"## [{section}]", "", " ".join((model.__doc__ or "").split()), ""]
        for field in (field for field in fields() if field.startswith(section + ".")):
            lines += _entry(field)
            if field == "data.sources":
                lines += [line for nested in source_fields() for line in _entry(nested)]
    return "\n".join(lines).rstrip() + "\n"


def _entry(field: str) -> list[str]:
    """One key of the page, in Markdown."""
    entry = reference(field)
    lines = [f"### {field}", "", entry.text, "", f"- Default: `{entry.default}`", f"- Allowed: {entry.allowed}"]
    return [*lines, *(f"- {label}: {entry.notes[label]}" for label in LABELS if label in entry.notes), ""]
