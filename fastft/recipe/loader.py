"""Load a recipe: its bytes and the `--set` overrides become a checked `Recipe`, or every problem at once."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fastft.console import redact_value
from fastft.errors import Problem, RecipeError, Where, nearest
from fastft.recipe.locate import line_of, line_of_nearest, line_of_statement
from fastft.recipe.model import Recipe
from fastft.recipe.paths import unreachable_paths
from fastft.recipe.reference import fields, takes_texts, top_fields
from fastft.recipe.rules import steps_and_epochs, violations
from fastft.recipe.wording import describe, find_fault, meant_key, named_here, shown

# A recipe is a page of text. Without a limit a hostile file costs seconds in the TOML parser.
MAX_BYTES = 64 * 1024
# `a.b.c = 1` and `[[[1]]]` have three levels. The parser takes time with the square of them.
MAX_LEVELS = 32
# Nobody reads more at once, and each costs a search for the nearest name.
MAX_PROBLEMS = 50

# Steps of a preference move far where one of SFT is small: at 2e-4 the answers of small and large models fall apart.
PREFERENCE_RATE = 2e-5

Origin = Literal["default", "recipe", "--set", "train.save_steps", "task"]


@dataclass(frozen=True)
class Setting:
    """The value of a key, in the plain values of JSON, and where it comes from."""

    value: Any
    origin: Origin


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, and where each of its values was written."""

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
        return Problem(self.where(field), field, wrong, instead, shown(self.value(field)))

    def value(self, field: str) -> Any:
        """The value of `section.key` as a plain TOML value."""
        section, _, key = field.rpartition(".")
        table = getattr(self.recipe, section) if section else self.recipe
        return table.model_dump(mode="json", include={key})[key]

    def settings(self) -> dict[str, Setting]:
        """Every `section.key` with its value, without secrets, and its origin."""
        known = (*top_fields(), *fields())
        return {field: Setting(redact_value(field, self.value(field)), self._origin(field)) for field in known}

    @property
    def implies_save_strategy(self) -> bool:
        """Whether save_strategy = "steps" follows from save_steps alone."""
        return _implies_save_strategy(self.given)

    def _origin(self, field: str) -> Origin:
        if field == "train.save_strategy" and self.implies_save_strategy:
            return "train.save_steps"
        if field in _defaults_of_task(self.recipe.model_dump()) and field not in self.given:
            return "task"
        return "--set" if field in self.overrides else "recipe" if field in self.given else "default"


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The checked recipe at `path`, with `overrides` applied.

    Raises:
        RecipeError: the file cannot be read or is not TOML, a key is unknown, a value is not allowed, keys contradict
            each other or would have no effect, or an override is malformed. All problems of a stage at once.
    """
    return check_text(_read(path), path, overrides)


def check_text(text: str, path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The checked recipe in `text`, which stands or will stand in `path`; raises as `load`."""
    tree = _parse(path, text)
    pairs = _parse_overrides(overrides)
    _override(tree, {field: value for field, (_, value) in pairs.items()})
    written = {field: raw for field, (raw, _) in pairs.items()}

    def locate(field: str) -> Where:
        return _where(path, text, written, field)

    given = frozenset(f"{section}.{key}" for section, keys in tree.items() if isinstance(keys, dict) for key in keys)
    given |= tree.keys() & top_fields().keys()
    if _implies_save_strategy(given):
        tree["train"]["save_strategy"] = "steps"
    _add_defaults_of_task(tree)
    recipe, problems, wrong, more = _make_recipe(tree, locate)
    if recipe is not None:
        given &= {*fields(), *top_fields()}  # what was set aside is not there any more
        problems += _contradictions(recipe, given, wrong, path.parent, locate)
        if not problems:
            return LoadedRecipe(recipe, path, text, written, given)
        # fastft.planning.check says it with what each means for the rows, which it reads only for a sound recipe.
        if (both := steps_and_epochs(recipe.train)) and not {both.field, *both.reads} & wrong:
            problems.append(Problem(locate(both.field), both.field, both.wrong, both.instead, both.got))
    problems.sort(key=lambda problem: (problem.where.line or 0, problem.field))
    if more:
        problems.append(Problem(Where(str(path)), "", f"and {more:,} more problems", "correct these first"))
    raise RecipeError(problems)


def _add_defaults_of_task(tree: dict[str, Any]) -> None:
    for field, value in _defaults_of_task(tree).items():
        section, _, key = field.partition(".")
        table = tree.setdefault(section, {}) if section == "train" else tree.get(section)
        if isinstance(table, dict):
            table.setdefault(key, value)


def _defaults_of_task(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that a task has of its own, by key."""
    if tree.get("task") == "classification":
        return {"data.overlong": "truncate"}  # a text that is left out would not be counted as wrong
    if tree.get("task") == "preference":
        own = tree.get("preference")
        loss = own.get("loss", "dpo") if isinstance(own, Mapping) else "dpo"
        return {"data.format": "kto" if loss == "kto" else "preference", "train.learning_rate": PREFERENCE_RATE}
    return {}


def _implies_save_strategy(given: frozenset[str]) -> bool:
    return "train.save_steps" in given and "train.save_strategy" not in given


def _contradictions(
    recipe: Recipe, given: frozenset[str], wrong: set[str], folder: Path, locate: Callable[[str], Where]
) -> Iterator[Problem]:
    """What the rules and the paths of valid values refuse, one a key; none that has to do with keys of `wrong`."""
    said = set(wrong)
    for broken in violations(recipe, given):
        if not {broken.field, *broken.reads} & said:
            yield Problem(locate(broken.field), broken.field, broken.wrong, broken.instead, broken.got)
            said.add(broken.field)
    for field, name, refusal in unreachable_paths(recipe, folder):
        if field not in said:
            yield Problem(locate(field), field, f"cannot be looked up: {refusal}", "correct it", shown(name))


def _read(path: Path) -> str:
    try:
        # A shell's <(...) is a pipe in /dev or /proc, which somebody writes to; another one could stay silent for ever.
        if path.is_fifo() and not str(path).startswith(("/dev/", "/proc/")):
            raise RecipeError(Problem(Where(str(path)), "", "is a named pipe", "name a recipe file (.toml)"))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise RecipeError(Problem(Where(str(path)), "", "is a folder", "name a recipe file (.toml)")) from None
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        close = nearest(path.name, (entry.name for entry in folder.glob("*.toml")))
        instead = f"did you mean {folder / close}?" if close else "`fastft init` writes a starter recipe"
        raise RecipeError(Problem(Where(str(path)), "", "no such file", instead)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        wrong = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        raise RecipeError(Problem(Where(str(path)), "", wrong, "check the path and its permissions")) from None
    if len(raw) > MAX_BYTES:
        wrong = f"is larger than {MAX_BYTES // 1024} KiB"
        raise RecipeError(Problem(Where(str(path)), "", wrong, "a recipe is a page of TOML text"))
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        wrong = f"is not UTF-8 text (byte {error.start})"
        raise RecipeError(Problem(Where(str(path), line), "", wrong, "save the file as UTF-8")) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    if (line := _too_deep(text)) is not None:
        instead = "a recipe has plain values in six tables"
        raise RecipeError(Problem(Where(str(path), line), "", "is nested too deeply", instead))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        if path.suffix.lower() in (".yaml", ".yml", ".json", ".ipynb", ".py"):
            wrong = f"is a {path.suffix.lower()} file; a recipe is TOML"
            instead = f"`fastft convert {path}` makes one of files of other tools, `fastft init` a new one"
            raise RecipeError(Problem(Where(str(path)), "", wrong, instead)) from None
        place = re.search(r"\(at line (\d+), column \d+\)$", message)
        begins = line_of_statement(text, int(place.group(1)) if place else None)
        line = int(place.group(1)) if place else begins
        wrong = "is not valid TOML: " + re.sub(r" \(at .*\)$", "", message)
        if begins < line:
            wrong += f", in the statement that begins on line {begins}"
        if message.startswith("Cannot "):  # overwrite a value, declare a table twice, ...
            instead = "write each [section] once, and each key once in it"
        elif typed := _typographic(text, line):
            wrong += f", by {typed}, which a text editor or a web page wrote"
            instead = 'write plain "double quotes" and plain - signs'
        else:
            lines = "write `key = value` lines under [section] headers"
            instead = f'{lines}; text in "double quotes", true and false in lower case'
    except (RecursionError, ValueError) as error:
        line, instead = line_of_statement(text, None), "a recipe has plain values in six tables"
        wrong = "is nested too deeply" if isinstance(error, RecursionError) else "has a number with too many digits"
    raise RecipeError(Problem(Where(str(path), line), "", wrong, instead))


# Texts and comments, in which dots and brackets mean nothing.
_OPAQUE = re.compile(r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL)
_DOTS = re.compile(rf"(?:\.[ \t\w-]*){{{MAX_LEVELS}}}")


def _too_deep(text: str) -> int | None:
    """The line of the first dotted key or bracket that is more than MAX_LEVELS levels deep, or None."""
    bare = _OPAQUE.sub(lambda match: "_" + "\n" * match[0].count("\n"), text)
    places = [found.start() for found in [_DOTS.search(bare)] if found]
    level = 0
    for bracket in re.finditer(r"[\[\]{}]", bare):
        level = level + 1 if bracket[0] in "[{" else max(0, level - 1)
        if level > MAX_LEVELS:
            places.append(bracket.start())
            break
    return bare.count("\n", 0, min(places)) + 1 if places else None


def _typographic(text: str, line: int) -> str | None:
    """The first sign of that line which looks like a quote, a dash or a space of TOML and is none."""
    signs = re.search("[\u2018-\u201f\u00ab\u00bb\u2010-\u2015\u00a0\u2212]", text.split("\n")[line - 1])
    return f"the sign {signs[0]} (U+{ord(signs[0]):04X})" if signs else None


def _parse_overrides(overrides: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """`section.key=value` texts as {field: (text, value)}; a value that is not TOML is plain text."""
    pairs: dict[str, tuple[str, Any]] = {}
    problems = []
    for text in overrides:
        field, equals, raw = text.partition("=")
        field = field.strip()
        named = re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", field) or field in top_fields()
        if not equals or not named:
            problems.append(
                Problem(Where("--set"), "", "is not section.key=value", _as_override(field, equals, raw), text)
            )
            continue
        try:
            value = raw if _too_deep(raw) else tomllib.loads(f"value = {raw}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError, ValueError):
            value = raw
        if isinstance(value, str) and takes_texts(field):
            value = [value]
        pairs[field] = (raw, value)
    if problems:
        raise RecipeError(problems)
    return pairs


def _override(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    for field, value in values.items():
        section, _, key = field.rpartition(".")
        table = tree.setdefault(section, {}) if section else tree
        if isinstance(table, dict):
            table[key] = value


def _as_override(field: str, equals: str, raw: str) -> str:
    """What to write instead of an override that is no section.key=value, made of what was typed."""
    known = fields() if field in fields() else ()
    home = field if known else named_here(field.rpartition(".")[2])
    if home is None:
        return "`fastft explain` lists the keys; as in --set train.max_steps=5"
    return f"write --set {home}={redact_value(field, raw)}" if equals and raw else f"write --set {home}=VALUE"


def _make_recipe(
    tree: dict[str, Any], locate: Callable[[str], Where]
) -> tuple[Recipe | None, list[Problem], set[str], int]:
    """(the recipe of what is valid in `tree`, the first problems, the keys of all, how many more there are).

    The keys that unknown ones probably mean are among those keys: their values are not known either. Removes what is
    not valid from `tree` and tries again, so that it finds every problem.
    """
    problems: list[Problem] = []
    wrong: set[str] = set()
    meant: set[str] = set()
    more = 0
    while True:
        try:
            return Recipe.model_validate(tree), problems, wrong | meant, more
        except ValidationError as error:
            # A value of a union has an error for each of its types.
            faults = list(dict.fromkeys(find_fault(entry) for entry in error.errors(include_url=False)))
        new = [fault for fault in faults if fault.key not in wrong]
        room = MAX_PROBLEMS - len(problems)
        problems += [describe(fault, tree, locate(fault.field)) for fault in new[:room]]
        more += len(new[room:])
        wrong |= {fault.key for fault in faults}
        meant |= {key for fault in new[:room] if fault.kind == "unknown" and (key := meant_key(fault.path))}
        if not _set_aside(tree, {fault.key for fault in faults}):
            return None, problems, wrong | meant, more


def _set_aside(tree: dict[str, Any], keys: Iterable[str]) -> bool:
    """Remove the values of `keys`, and fill in missing required ones. Returns whether anything changed."""
    changed = False
    for name in keys:
        *parents, key = name.split(".", 1)
        table: Any = tree.get(parents[0]) if parents else tree
        if isinstance(table, dict) and key in table:
            del table[key]
            changed = True
        elif isinstance(table, dict) and name in _PLACEHOLDERS:
            table[key] = copy.deepcopy(_PLACEHOLDERS[name])
            changed = True
    return changed


# For required values that are missing or wrong, so that the rest can be checked. Never returned to a caller.
_PLACEHOLDERS: dict[str, Any] = {"model": {"id": "-"}, "data": {"train": "-"}, "model.id": "-"}


def _where(path: Path, text: str, overrides: Mapping[str, str], field: str) -> Where:
    """Where `field` was written: the override that sets it (or a key of the section), else the line of the file."""
    parts: list[str | int] = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", field)]
    key = ".".join(str(part) for part in parts[:2])
    line = None if key in overrides else line_of(text, parts)
    for name in overrides if line is None else ():
        if name == key or name.startswith(f"{field}."):
            return Where(f"--set {name}={overrides[name]}")
    return Where(str(path), line or line_of_nearest(text, parts))
