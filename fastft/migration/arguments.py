"""Arguments of another tool, and the rows that say where each goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument as its tool names it, with its value and its line in the file."""

    name: str
    value: Any
    line: int | None = None


@dataclass(frozen=True)
class Source:
    """The arguments in a file of another tool: `tool` is a name in fastft.migration.tools, `form` what was read."""

    path: str
    form: str
    tool: str
    arguments: tuple[Argument, ...]


class LostError(Exception):
    """The recipe cannot say this, and it changes what is trained."""


class OtherTaskError(Exception):
    """The file asks for another kind of training than a recipe describes."""


Settings = dict[str, Any]
# Gives values of `section.key`, or a sentence that says why the recipe needs none; may raise the errors above. The
# mapping holds all arguments of the file.
Take = Callable[[Any, Mapping[str, Any]], Settings | str]


@dataclass(frozen=True)
class Row:
    """One argument of another tool: the keys that it becomes, and how."""

    name: str
    fields: tuple[str, ...]
    take: Take
    note: str = ""
    """Why there is no key, or what is lost: for the tables of the docs."""


def key(name: str, field: str, convert: Callable[[Any], Any]) -> Row:
    """An argument that is one key here."""
    return Row(name, (field,), lambda value, _: {field: convert(value)})


def keys(name: str, fields: tuple[str, ...], take: Take) -> Row:
    """An argument that becomes any of several keys, or depends on other arguments."""
    return Row(name, fields, take)


def unneeded(why: str, *names: str) -> tuple[Row, ...]:
    """Arguments that change nothing of what is learnt, or say what fastft does anyway."""
    return tuple(Row(name, (), lambda _value, _all: why, why) for name in names)


def lost(why: str, *names: str, unless: tuple[Any, ...] = (False,)) -> tuple[Row, ...]:
    """Arguments that would change the result and that no recipe can say; the values of `unless` ask for nothing."""

    def take(value: Any, _: Mapping[str, Any]) -> str:
        if any(value == none and isinstance(value, bool) == isinstance(none, bool) for none in unless):
            return "asks for nothing"
        raise LostError(why)

    return tuple(Row(name, (), take, f"lost: {why}") for name in names)


def other_task(what: str, *names: str, unless: tuple[Any, ...] = (False,)) -> tuple[Row, ...]:
    """Arguments of another kind of training."""

    def take(value: Any, _: Mapping[str, Any]) -> str:
        if value in unless:
            return "asks for nothing"
        raise OtherTaskError(what)

    return tuple(Row(name, (), take, f"refused: {what}") for name in names)


@dataclass(frozen=True)
class Tool:
    """A tool whose arguments can be read: its name, its table, and its own defaults where fastft has others."""

    name: str
    rows: Mapping[str, Row]
    defaults: Callable[[Mapping[str, Any], Settings], Settings]
    """The settings that the tool takes where the file says nothing, given its arguments and the settings so far."""


def table(*rows: Row) -> dict[str, Row]:
    """The rows by name; a later row replaces an earlier one of the same name, as a tool does with a common argument."""
    return {row.name: row for row in rows}
