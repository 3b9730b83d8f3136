"""Columns of a row that its format does not read: those that change what is learnt are refused, the others named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fastft.data.content_parts import MARKS
from fastft.data.json_rows import json_kind
from fastft.data.turns import MEDIA, REASONING
from fastft.data.values import says_something
from fastft.errors import DataError, Problem, Where, nearest
from fastft.recipe.data_formats import ALL_FORMATS, OPTIONAL_COLUMNS, PREFERENCE_FORMATS

# Names in one note.
LISTED_NAMES = 12
_LEAVE_OUT = "or leave it out on purpose: data.ignore = [{name}]"
_OTHER_NAMES = {
    "system": ("system_prompt", "system_message", "systemInstruction", "system_instruction"),
    "tools": ("functions", "tool_list", "available_tools", "toolConfig", "tool_config"),
}
# Formats with whole conversations: there, an `input` only describes the row.
_INPUT_DESCRIBES = ("messages", "sharegpt", "text")
_WITH_THOUGHTS = tuple(name for name, columns in OPTIONAL_COLUMNS.items() if "reasoning_content" in columns)
# Columns that change what is learnt, in the formats that do not read them: what to do with each.
_INSTEAD = {
    **dict.fromkeys(MEDIA, "remove the row, because the model would learn to invent what it does not see"),
    **dict.fromkeys(REASONING, 'write it as "reasoning_content" of its turn'),
    **dict.fromkeys(("system", "tools"), "use a format with turns"),
    "history": "write it as turns",
    "input": "write it into the question",
}
_PREFERENCES = ("chosen", "rejected", "preferred")
_VERDICTS = ("label", "desirable", "is_desirable", "kto_label", "kto_tag")
_THOUGHTS = ("cot", "chain_of_thought", "thought", "thoughts", "think", "reasoning_text")
_ARGUMENTS = ("chat_template_kwargs", "enable_thinking")


def check_columns(row: Mapping[str, Any], data_format: str, ignored: Iterable[str], where: Where) -> set[str]:
    """The columns of `row` that say something and have no effect.

    Raises:
        DataError: one of them changes what would be learnt.
    """
    unused = row.keys() - ALL_FORMATS[data_format] - OPTIONAL_COLUMNS[data_format] - set(ignored)
    unused = {name for name in unused if says_something(row[name])}
    for name in sorted(unused):
        refused = _refused(name, row[name], data_format)
        if refused is not None:
            wrong, instead = refused
            instead = f"{instead}, {_LEAVE_OUT.format(name=chr(34) + name + chr(34))}"
            raise DataError(Problem(where, name, wrong, instead, got=json_kind(row[name])))
    return unused


def _refused(name: str, value: object, data_format: str) -> tuple[str, str] | None:
    """What is wrong with an unused column and what to write instead, or None for one that only describes the row."""
    known = next((known for known, others in _OTHER_NAMES.items() if name in others), "")
    if known in OPTIONAL_COLUMNS[data_format]:
        return f"has no effect under this name: did you mean {known}?", f'write columns = {{ {known} = "{name}" }}'
    if name in MARKS:
        return None if value == 1 else ("weights of rows have no effect", "use data.sources with a weight each")
    if _is_preference(name, value, data_format):
        says = 'write task = "preference", or keep only the answers to learn'
        return "preferences are not trained: bad answers would count as good", says
    if name in _THOUGHTS and data_format in _WITH_THOUGHTS:
        return "has no effect under this name", f'write columns = {{ reasoning_content = "{name}" }}'
    if name in _ARGUMENTS and data_format != "text":
        return "arguments of the chat template are the same for all rows", "write them as data.chat_template_kwargs"
    instead = None if data_format in _INPUT_DESCRIBES and name == "input" else _INSTEAD.get(name)
    return None if instead is None else (f"has no effect in the {data_format} format", instead)


def _is_preference(name: str, value: object, data_format: str) -> bool:
    """Whether the column says which of two answers is better, or whether this one is good, where none is learnt."""
    if data_format in PREFERENCE_FORMATS:
        return False
    if name in _VERDICTS:
        return _is_truth(value)
    return name.startswith(_PREFERENCES) and not isinstance(value, int | float)


def unused_notes(rows: str, counts: Counter[str]) -> list[str]:
    """What people read of `RowSet.unused`, for rows called `rows`."""
    notes = []
    for kind_of_name, in_turns in (("columns", False), ("keys of turns", True)):
        found = [(name, count) for name, count in counts.most_common() if name.startswith("[].") is in_turns]
        listed = ", ".join(_named(name.removeprefix("[]."), count) for name, count in found[:LISTED_NAMES])
        more = f" and {len(found) - LISTED_NAMES} more" if len(found) > LISTED_NAMES else ""
        if found:
            notes.append(f"{kind_of_name} without effect in {rows} rows: {listed}{more}")
    return notes


def _named(name: str, count: int) -> str:
    near = nearest(name.lower(), {*OPTIONAL_COLUMNS["alpaca"], *MARKS, "tool_calls"})
    hint = f"; did you mean {near}?" if near else ""
    return f"{name} ({count:,} {'row' if count == 1 else 'rows'}{hint})"


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))
