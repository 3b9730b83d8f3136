"""From the bytes of a recipe and the `--set` overrides to a checked `Recipe`, or every problem at once."""

from __future__ import annotations

import copy
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastft.errors import Problem, RecipeError, Where, nearest
from fastft.recipe.locate import line_of, line_of_entry, line_of_nearest, line_of_statement
from fastft.recipe.model import DataSource, Recipe
from fastft.recipe.names import ELSEWHERE
from fastft.recipe.reference import allowed, fields, sections
from fastft.recipe.rules import findings

# A recipe is a page of text. The limit keeps hostile files from costing seconds in the TOML parser.
MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe together with where each of its values was written."""

    recipe: Recipe
    path: Path
    text: str
    overrides: Mapping[str, str]
    given: frozenset[str]

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the recipe start from."""
        return self.path.parent

    def where(self, field: str) -> Where:
        """Where `section.key` was written: a line of the recipe, or the override."""
        return _where(self.path, self.text, self.overrides, field)

    def problem(self, field: str, wrong: str, instead: str) -> Problem:
        """A problem of `section.key`, with its place and the value it has."""
        return Problem(self.where(field), field, wrong, instead, _shown(self.value(field)))

    def value(self, field: str) -> Any:
        """The value of `section.key`."""
        section, key = field.split(".", 1)
        return getattr(getattr(self.recipe, section), key)

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every `section.key` with its value and its origin: "default", "recipe" or "--set"."""
        table = {}
        for field in fields():
            origin = "--set" if field in self.overrides else "recipe" if field in self.given else "default"
            value = self.value(field)
            table[field] = {"value": list(value) if isinstance(value, tuple) else value, "origin": origin}
        return table


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override and check the recipe at `path`.

    Raises:
        RecipeError: the file cannot be read or is no TOML, a key is unknown, a value is impossible, keys contradict
            each other or would have no effect, or an override is malformed. All problems of a stage at once.
    """
    text = _read(path)
    tree = _parse(path, text)
    pairs = _parse_overrides(overrides)
    for field, (_, value) in pairs.items():
        _assign(tree, field, value)
    written = {field: raw for field, (raw, _) in pairs.items()}
    return _validate(path, text, tree, written)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            problem = Problem(
                Where(str(path)), "", f"is larger than {MAX_BYTES // 1024} KiB", "a recipe is a page of TOML text"
            )
            raise RecipeError(problem)
        return path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise RecipeError(Problem(Where(str(path)), "", "is a folder", "name a recipe file (.toml)")) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        wrong = f"is not UTF-8 text (byte {error.start})"
        raise RecipeError(Problem(Where(str(path), line), "", wrong, "save the file as UTF-8")) from None
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        close = nearest(path.name, (entry.name for entry in folder.glob("*.toml")))
        instead = f"did you mean {folder / close}?" if close else "`fastft init` writes a starter recipe"
        raise RecipeError(Problem(Where(str(path)), "", "no such file", instead)) from None
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
        raise RecipeError(Problem(Where(str(path)), "", wrong, "check the path and its permissions")) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = re.search(r"\(at line (\d+), column \d+\)$", message)
        begins = line_of_statement(text, int(place.group(1)) if place else None)
        line = int(place.group(1)) if place else begins
        wrong = "is not valid TOML: " + re.sub(r" \(at .*\)$", "", message)
        if begins < line:
            wrong += f", in what begins on line {begins}"
        if message.startswith("Cannot "):  # overwrite a value, declare a table twice, ...
            instead = "write each [section] once, and each key once in it"
        else:
            lines = "write `key = value` lines under [section] headers"
            instead = f'{lines}; text in "double quotes", true and false in lower case'
    except (RecursionError, ValueError) as error:
        line, instead = line_of_statement(text, None), "a recipe holds plain values in six tables"
        wrong = "is nested too deeply" if isinstance(error, RecursionError) else "holds a number of too many digits"
    raise RecipeError(Problem(Where(str(path), line), "", wrong, instead))


def _parse_overrides(overrides: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """`section.key=value` texts as {field: (text, value)}; a value that is no TOML is taken as plain text."""
    pairs: dict[str, tuple[str, Any]] = {}
    problems = []
    for text in overrides:
        field, equals, raw = text.partition("=")
        field = field.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", field):
            problems.append(
                Problem(Where("--set"), "", "is not section.key=value", "write --set train.learning_rate=1e-4", text)
            )
            continue
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError, ValueError):
            value = raw
        pairs[field] = (raw, value)
    if problems:
        raise RecipeError(problems)
    return pairs


def _assign(tree: dict[str, Any], field: str, value: Any) -> None:
    section, key = field.split(".", 1)
    table = tree.setdefault(section, {})
    if isinstance(table, dict):
        table[key] = value


def _validate(path: Path, text: str, tree: dict[str, Any], overrides: Mapping[str, str]) -> LoadedRecipe:
    """Check the whole tree; what fails is put aside so that the rest is checked in the same pass."""
    problems: dict[str, Problem] = {}
    broken: set[str] = set()
    sound = copy.deepcopy(tree)
    recipe: Recipe | None = None
    while recipe is None:
        try:
            recipe = Recipe.model_validate(sound)
        except ValidationError as error:
            found = [(tuple(str(part) for part in entry["loc"]), entry) for entry in error.errors(include_url=False)]
            for loc, entry in found:
                broken.add(".".join(loc[:2]))
                if len(loc) == 4:
                    problems[".".join(loc)] = _explain_source(path, text, loc, dict(entry), sound)
                elif ".".join(loc[:2]) not in problems:
                    problems[".".join(loc[:2])] = _explain(path, text, overrides, loc[:2], dict(entry), sound)
            if not _set_aside(sound, [loc[:2] for loc, _ in found]):
                break
    if recipe is not None:
        given = frozenset(f"{section}.{key}" for section, keys in sound.items() for key in keys)
        for finding in findings(recipe, given):
            if not {finding.field, *finding.reads} & broken:
                where = _where(path, text, overrides, finding.field)
                problems.setdefault(
                    finding.field, Problem(where, finding.field, finding.wrong, finding.instead, finding.got)
                )
        if not problems:
            return LoadedRecipe(recipe, path, text, overrides, given)
    raise RecipeError(sorted(problems.values(), key=lambda problem: (problem.where.line or 0, problem.field)))


def _set_aside(tree: dict[str, Any], paths: Iterable[tuple[str, ...]]) -> bool:
    """Remove the values at `paths`, and fill in required ones that are missing; False when nothing could be changed."""
    changed = False
    for path in paths:
        *parents, key = path
        table: Any = tree
        for parent in parents:
            table = table.get(parent, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict) and key in table:
            del table[key]
            changed = True
        elif path in _STAND_INS and isinstance(table, dict):
            table[key] = copy.deepcopy(_STAND_INS[path])
            changed = True
    return changed


# Values that let the rest of a recipe be checked when a required one is missing or wrong. Never returned to a caller.
_STAND_INS: dict[tuple[str, ...], Any] = {
    ("model",): {"id": "-"},
    ("data",): {"train": "-"},
    ("model", "id"): "-",
    ("data", "train"): "-",
}


def _explain(
    path: Path,
    text: str,
    overrides: Mapping[str, str],
    loc: tuple[str, ...],
    entry: dict[str, Any],
    tree: Mapping[str, Any],
) -> Problem:
    """One pydantic error in the words of the recipe."""
    field = ".".join(loc)
    kind = entry["type"]
    where = _where(path, text, overrides, field)
    if kind == "extra_forbidden":
        return Problem(
            where, field, "there is no such key" if len(loc) > 1 else "there is no such section", _known(loc)
        )
    if kind == "missing":
        return Problem(where, field, "is missing", f"add {_example(loc)}")
    if len(loc) == 1:
        return Problem(where, field, "is not a table", f"write a [{field}] header and its keys below it")
    value = tree[loc[0]][loc[1]]
    instead = allowed(field)
    close = nearest(value, re.findall(r'"([^"]+)"', instead)) if isinstance(value, str) else None
    instead = f'did you mean "{close}"?' if close else f"write {instead}"
    return Problem(where, field, "is not a value it can have", instead, _shown(value))


def _explain_source(
    path: Path, text: str, loc: tuple[str, ...], entry: dict[str, Any], tree: Mapping[str, Any]
) -> Problem:
    """One pydantic error in a `[[data.sources]]` table: `loc` is data, sources, its number, the key."""
    section, name, number, key = loc
    where = Where(str(path), line_of_entry(text, (section, name), int(number), key) or line_of_nearest(text, loc[:2]))
    field = f"{section}.{name}.{key}"
    if entry["type"] == "extra_forbidden":
        close = nearest(key, DataSource.model_fields)
        known = f"did you mean {close}?" if close else f"its keys are {', '.join(DataSource.model_fields)}"
        return Problem(where, field, "there is no such key", known)
    if entry["type"] == "missing":
        return Problem(where, field, "is missing", 'add path = "rows.jsonl" under [[data.sources]]')
    value = tree[section][name][int(number)][key]
    return Problem(where, field, "is not a value it can have", f"write {allowed(field)}", _shown(value))


def _known(loc: tuple[str, ...]) -> str:
    """What an unknown section or key was most likely meant to be."""
    if len(loc) == 1:
        if loc[0] in ELSEWHERE or any(field.endswith("." + loc[0]) for field in fields()):
            home = ELSEWHERE.get(loc[0]) or next(field for field in fields() if field.endswith("." + loc[0]))
            section, key = home.split(".")
            return f"write {key} under [{section}]"
        close = nearest(loc[0], sections())
        return f"did you mean [{close}]?" if close else "the sections are " + ", ".join(f"[{s}]" for s in sections())
    section, key = loc
    homes = [field for field in fields() if field.split(".")[1] == key]
    if homes:
        return f"{key} belongs under [{homes[0].split('.')[0]}]"
    here = {field.split(".")[1]: field for field in fields() if field.startswith(section + ".")}
    there = {field.split(".")[1]: field for field in fields()}
    for names in ({**ELSEWHERE, **here}, {**ELSEWHERE, **there}):
        close = key if key in names else nearest(key, names)
        if close:
            home, name = names[close].split(".")
            return f"did you mean {name}?" if home == section else f"did you mean {name} under [{home}]?"
    return f"`fastft explain {section}` lists the keys of [{section}]"


def _example(loc: tuple[str, ...]) -> str:
    examples = {
        "model": '[model] with id = "a Hub id or a folder"',
        "data": '[data] with train = "rows.jsonl"',
        "model.id": 'id = "a Hub id, a folder or package:NAME/FILE.gguf" under [model]',
        "data.train": 'train = "rows.jsonl" under [data]',
    }
    return examples[".".join(loc)]


def _where(path: Path, text: str, overrides: Mapping[str, str], field: str) -> Where:
    if field in overrides:
        return Where(f"--set {field}={overrides[field]}")
    parts = field.split(".")
    return Where(str(path), line_of(text, parts) or line_of_nearest(text, parts))


def _shown(value: Any) -> str:
    """A value as it would be written in TOML, cut to a readable length."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
