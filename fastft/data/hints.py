"""Columns under other names than those of a format: the mapping for `data.columns` that would work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastft.recipe.data_formats import DATA_FORMATS

# Other names of a column in real files, without capitals and punctuation.
_OTHER_NAMES = {
    "messages": ("conversation", "conversations", "dialog", "dialogue", "dialogs", "chat", "turns", "contents", "msgs"),
    "instruction": (),
    "output": ("response", "answer", "completion", "target", "outputs"),
    "prompt": ("question", "query", "instruction", "input", "user", "human", "request", "problem", "q", "source"),
    "completion": (
        *("answer", "response", "output", "target", "reply", "assistant", "gpt", "bot", "solution", "a", "chosen"),
        *("result", "answers", "responses"),
    ),
    "text": ("content", "document", "article", "body"),
    "input": ("context",),
    "system": ("systemprompt", "systemmessage"),
    "history": (),
    "tools": ("functions",),
}
_FORMATS = {
    "messages": ("system", "tools"),
    "instruction output": ("input", "system", "history"),
    "prompt completion": ("system", "history"),
    "text": (),
}
_ROWS_INSIDE = ("data", "rows", "examples", "items", "records", "dataset", "train", "test")
# A question with its answer as one turn (Firefly, XTuner).
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"))
_SPEAKERS = ("role", "from")
# Of task = "classification".
_TEXTS = (
    *(
        "text",
        "sentence",
        "review",
        "content",
        "message",
        "question",
        "query",
        "input",
        "utterance",
        "title",
        "comment",
    ),
    *("tweet", "document", "article", "body", "prompt"),
)
_LABELS = (
    *("label", "labels", "category", "class", "intent", "sentiment", "topic", "tag", "emotion", "target", "output"),
    *("answer", "type"),
)


def instead_of(row: Mapping[str, Any]) -> str | None:
    """What to write for a row whose columns fit no format: the mapping that works, or where the rows are."""
    if {"chosen", "rejected"} <= row.keys():
        return _for_preferences(row)
    if mapping := columns_for(row):
        return f"write columns = {_toml(mapping)}"
    for name, value in row.items():
        if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
            continue
        pair = next((pair for pair in _PAIRS if value[0].keys() >= {*pair}), None)
        if pair is not None and name.lower() not in _ROWS_INSIDE:
            turns = '{"role": "user", "content": ...}, {"role": "assistant", "content": ...}'
            return f'"{name}" holds pairs of {pair[0]} and {pair[1]}: write each as two turns of "messages", {turns}'
        if _is_row(name, value[0]):
            return f'the rows seem to be inside "{name}": write that list as the file'
    return None


def columns_for(row: Mapping[str, object]) -> dict[str, str]:
    """The `data.columns` that make a format of the row; empty where there is none."""
    mappings = (_mapping(row, needed.split(), optional) for needed, optional in _FORMATS.items())
    return next((mapping for mapping in mappings if mapping), {})


def label_columns_for(row: Mapping[str, object]) -> dict[str, str] | None:
    """The `data.columns` that make a text and a label of the row; None where it has no such columns."""
    found: dict[str, str] = {}
    for wanted, names in (("text", _TEXTS), ("label", _LABELS)):
        left = [column for column in row if column not in found.values()]
        column = next((column for name in names for column in left if _plain(column) == name), None)
        if column is None:
            return None
        found[wanted] = column
    return {wanted: name for wanted, name in found.items() if wanted != name}


def is_column_wise(row: Mapping[str, Any]) -> bool:
    """Whether a row holds the columns of a whole file: lists, or objects by number as pandas writes them."""
    values = list(row.values())
    if all(isinstance(value, Mapping) and "0" in value for value in values):
        return bool(values)
    if row.keys() & {"messages", "conversations"}:
        return False
    return all(isinstance(value, list) and value and not isinstance(value[0], Mapping) for value in values)


def _for_preferences(row: Mapping[str, Any]) -> str:
    rest = 'ignore = ["rejected"]'
    task = 'these are preferences: write task = "preference" above the sections'
    if isinstance(row["chosen"], list):
        return f'{task}; to train what was chosen alone, columns = {{ messages = "chosen" }}, {rest}'
    question = next((name for name in row if _plain(name) in ("prompt", *_OTHER_NAMES["prompt"])), None)
    if question is None:
        return task
    mapping = {"completion": "chosen"} | ({} if question == "prompt" else {"prompt": question})
    return f"{task}; to train what was chosen alone, columns = {_toml(mapping)}, {rest}"


def _mapping(row: Mapping[str, Any], needed: list[str], optional: tuple[str, ...]) -> dict[str, str]:
    """The columns of the file for `needed`, and for `optional` where there are some; empty when one is missing."""
    found: dict[str, str] = {}
    for wanted in (*needed, *optional):
        names = (wanted, *_OTHER_NAMES[wanted])
        left = [column for column in row if column not in found.values() and _fits(row[column], wanted)]
        column = next((column for name in names for column in left if _plain(column) == name), None)
        if column is not None:
            found[wanted] = column
        elif wanted in needed:
            return {}
    return {wanted: name for wanted, name in found.items() if wanted != name}


def _fits(value: object, wanted: str) -> bool:
    """Whether the value can stand in the column `wanted`."""
    if wanted == "messages":
        return isinstance(value, list) and bool(value) and _is_turn(value[0])
    if wanted in ("history", "tools"):
        return value is None or isinstance(value, list | str)
    return value is None or isinstance(value, str)


def _is_row(name: str, value: Mapping[str, Any]) -> bool:
    """Whether an object in the list `name` is a row: it has the columns of one, or the name says so."""
    return name.lower() in _ROWS_INSIDE or any(value.keys() >= {*needed} for needed in DATA_FORMATS.values())


def _is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and any(name in value for name in _SPEAKERS)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _toml(mapping: Mapping[str, str]) -> str:
    pairs = (f"{key} = {_quoted(name)}" for key, name in mapping.items())
    return f"{{ {', '.join(pairs)} }}"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
