"""A recipe out of the arguments of another tool, with where each of them went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.errors import Problem, RecipeError, UsageError, Where, nearest
from fastft.migration.arguments import Argument, LostError, OtherTaskError, Settings, Source, Tool
from fastft.migration.command_text import read_commands
from fastft.migration.program_text import UNKNOWN, read_notebook, read_program
from fastft.migration.tools import TOOLS
from fastft.migration.yaml_text import read_yaml
from fastft.recipe.loader import check_text
from fastft.recipe.reference import fields, sections
from fastft.recipe.written import as_toml

# Notebooks hold pictures.
MOST_BYTES = 32 * 2**20
HELD_OUT = ("train.eval_strategy", "train.eval_steps", "train.load_best_model_at_end", "train.metric_for_best_model")


@dataclass(frozen=True)
class Placed:
    """Where one argument went: the keys that it became, or why it has none; `lost` where that changes the result."""

    argument: Argument
    fields: tuple[str, ...]
    note: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Converted:
    """The recipe's text, and what became of each argument."""

    source: Source
    text: str
    placed: tuple[Placed, ...]
    sound: bool

    @property
    def lost(self) -> tuple[Placed, ...]:
        """The arguments that would change the result and have no place."""
        return tuple(entry for entry in self.placed if entry.lost)

    @property
    def summary(self) -> str:
        """One line: what was read, and how many arguments have a key, need none, or are lost."""
        keys = sum(bool(entry.fields) for entry in self.placed)
        lost = len(self.lost)
        rest = f"{keys} have a key here, {len(self.placed) - keys - lost} need none, {lost} would be lost"
        return f"{self.source.path}: {self.source.form} for {self.source.tool}; {len(self.placed)} arguments: {rest}"


def read_source(path: str, text: str) -> Source:
    """The arguments in a file: what it is follows from its content.

    Raises:
        UsageError: it is nothing that can be read, or of no tool that is known.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".toml":
        wrong, instead = "is a .toml file, which a recipe is already", f"fastft check {path}"
        raise UsageError(Problem(Where(path), "", wrong, instead))
    if suffix == ".ipynb" or (text.lstrip().startswith("{") and '"cells"' in text):
        return read_notebook(path, text)
    if suffix == ".py" or "from_pretrained(" in text or "SFTTrainer(" in text:
        return read_program(path, text)
    if suffix in (".yaml", ".yml") or (suffix not in (".sh", ".txt", ".md") and " --" not in text):
        return read_yaml(path, text)
    return read_commands(path, text)


def convert(source: Source, folder: Path) -> Converted:
    """The recipe that says what `source` says.

    Raises:
        UsageError: the source asks for another kind of training.
    """
    given: dict[str, Any] = {argument.name: argument.value for argument in source.arguments}
    given["<folder>"] = str(folder)
    settings: Settings = {}
    comments: dict[str, str] = {}
    placed = [_place(argument, source, given, settings, comments) for argument in source.arguments]
    tool = TOOLS[source.tool]
    for field, value in tool.defaults(given, settings).items():
        if field not in settings and value != fields()[field].default:
            settings[field] = value
            comments[field] = f"{tool.name}'s default"
    data = {"data.train", "data.sources"}
    rows_are_lost = any(entry.lost and data & set(_fields_of(entry, tool)) for entry in placed)
    placed += _complete(settings, comments, rows_are_lost=rows_are_lost)
    placed, text, sound = _checked(source, settings, comments, placed)
    return Converted(source, text, tuple(placed), sound)


def _fields_of(entry: Placed, tool: Tool) -> tuple[str, ...]:
    row = tool.rows.get(entry.argument.name)
    return ("data.train",) if entry.argument.name == "rows" else row.fields if row else ()


def _place(
    argument: Argument, source: Source, given: Mapping[str, Any], settings: Settings, comments: dict[str, str]
) -> Placed:
    """Where one argument goes; its values are added to `settings`."""
    rows = TOOLS[source.tool].rows
    row = rows.get(argument.name)
    if argument.value is None or argument.value == "":
        return Placed(argument, (), "asks for nothing")
    if argument.name in ("trainer", "FastVisionModel"):
        wrong = "pictures" if argument.value is True else str(argument.value)
        raise UsageError(Problem(Where(source.path, argument.line), wrong, *_OTHER_TASK))
    if row is None:
        close = nearest(argument.name, rows)
        note = f"fastft does not know it{f'; did you mean {close}?' if close else ''}"
        return Placed(argument, (), note, lost=True)
    if argument.value is UNKNOWN and row.fields:
        return Placed(argument, (), "is computed by the program; only literal values are read", lost=True)
    try:
        found = row.take(argument.value, given)
    except LostError as error:
        return Placed(argument, (), str(error), lost=True)
    except OtherTaskError as error:
        place = Where(source.path, argument.line)
        raise UsageError(Problem(place, argument.name, f"asks for {error}", _OTHER_TASK[1])) from None
    if isinstance(found, str):
        return Placed(argument, (), found)
    settings.update(found)
    for field in found:
        if field.split(".")[1] != argument.name.split(".")[-1]:
            comments[field] = argument.name
    return Placed(argument, tuple(found), "")


_OTHER_TASK = (
    "is another kind of training, which no recipe describes",
    "fastft convert reads supervised fine-tuning of text; write a recipe with `fastft init`",
)


def _complete(settings: Settings, comments: dict[str, str], *, rows_are_lost: bool) -> list[Placed]:
    """Settle what a recipe wants said in one way: no adapter for full fine-tuning, no evaluation without rows."""
    placed: list[Placed] = []
    for fields_, why in _without_effect(settings):
        for field in fields_:
            if field in settings:
                name = comments.get(field, field.split(".")[1])
                placed.append(Placed(Argument(name, settings.pop(field)), (), why))
    if settings.get("model.full_finetuning"):
        formats = [name for name in settings.get("export.formats", ()) if name != "adapter"]
        settings["export.formats"] = formats or ["merged_16bit"]
        comments["export.formats"] = "every weight is trained: there is no adapter"
    for field, value, what in (("model.id", "org/model", "model"), ("data.train", "rows.jsonl", "rows")):
        if field not in settings and not (what == "rows" and "data.sources" in settings):
            settings[field] = value
            comments[field] = f"the source names no {what}: write yours"
            if not (what == "rows" and rows_are_lost):  # said already
                placed.append(Placed(Argument(what, None), (), "is not named in the source", lost=True))
    return placed


def _without_effect(settings: Settings) -> list[tuple[tuple[str, ...], str]]:
    """Keys that a recipe refuses because they would have no effect, as they have none in the source."""
    found: list[tuple[tuple[str, ...], str]] = []
    if settings.get("model.full_finetuning"):
        adapter = tuple(name for name in settings if name.startswith("lora."))
        found.append((adapter, "every weight is trained, without an adapter"))
    if not settings.get("data.eval") and not settings.get("data.eval_fraction"):
        found.append((HELD_OUT, "no rows are held out"))
    if "train.effective_batch_size" in settings:
        found.append((("train.gradient_accumulation_steps",), "part of effective_batch_size, with all processes"))
    if settings.get("train.save_strategy") == "no":
        found.append((("train.save_total_limit",), "nothing is saved"))
    if settings.get("data.format") == "text":
        found.append((("data.train_on", "data.chat_template"), "plain text has no messages"))
    return found


def _checked(
    source: Source, settings: Settings, comments: dict[str, str], placed: list[Placed]
) -> tuple[list[Placed], str, bool]:
    """The recipe without what its rules refuse; each such key is lost."""
    while True:
        text = recipe_text(source, settings, comments, placed)
        try:
            check_text(text, Path(f"{source.path}.toml"))
        except RecipeError as error:
            refused = [problem for problem in error.problems if problem.field.split("[")[0] in settings]
            if not refused:
                return placed, text, False
            for problem in refused:
                field = problem.field.split("[")[0]
                if field in settings:
                    name = comments.get(field, field.split(".")[1])
                    value = settings.pop(field)
                    placed = [entry for entry in placed if entry.fields != (field,)]
                    placed.append(Placed(Argument(name, value), (), f"{field} {problem.wrong}", lost=True))
        else:
            return placed, text, True


def recipe_text(source: Source, settings: Settings, comments: Mapping[str, str], placed: list[Placed]) -> str:
    """The recipe in TOML, with a comment at each key that has another name there, and one for each that has no key."""
    lines = [f"# From {_plain(source.path)} ({source.form} for {source.tool}), by fastft convert."]
    for section in sections():
        lines += _section_lines(section, settings, comments)
    lost = [entry for entry in placed if entry.lost]
    unneeded = [entry for entry in placed if not entry.lost and not entry.fields and entry.argument.value is not None]
    for head, entries in (("Lost: this changes what is trained", lost), ("Not needed here", unneeded)):
        lines += ["", f"# {head}:"] if entries else []
        lines += [f"#   {_shown(entry)}" for entry in entries]
    return "\n".join(lines) + "\n"


def _section_lines(section: str, settings: Settings, comments: Mapping[str, str]) -> list[str]:
    chosen = [field for field in fields() if field in settings and field.startswith(section + ".")]
    plain = [field for field in chosen if field != "data.sources"]
    lines = ["", f"[{section}]"] if plain or section in ("model", "data") else []
    for field in plain:
        comment = f"  # {_plain(comments[field])}" if field in comments else ""
        lines.append(f"{field.split('.')[1]} = {as_toml(settings[field])}{comment}")
    for entry in settings["data.sources"] if "data.sources" in chosen else ():
        lines += ["", "[[data.sources]]", *(f"{name} = {as_toml(value)}" for name, value in entry.items())]
    return lines


def _shown(entry: Placed) -> str:
    value = entry.argument.value
    shown = (
        "" if value is None or value is UNKNOWN else f" = {_plain(json.dumps(value, default=str, ensure_ascii=False))}"
    )
    return f"{_plain(entry.argument.name)}{shown if len(shown) <= 60 else shown[:57] + '...'}: {_plain(entry.note)}"


def _plain(text: str) -> str:
    """Text that cannot end a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
