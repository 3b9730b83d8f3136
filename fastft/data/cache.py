"""Prepared rows on disk, as Arrow files that the next run with the same data and settings maps instead of working.

The key is made of contents, never of paths and times: the bytes of the data files, the tokenizer, the chat template and
every setting that changes a token. The files are in the form of `datasets`: `Dataset.from_file(folder / "train.arrow")`
gives the columns input_ids, labels, length, path and line without a copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft import __version__
from fastft.data.example import Example, Message
from fastft.data.rows import Overlong, Rows, RowSet
from fastft.errors import Problem, Where

if TYPE_CHECKING:
    from fastft.data.render import Renderer
    from fastft.recipe.model import DataSection

# Raised when the same key would stand for other tokens.
FORMAT = 1
# Arrow's list type counts tokens in 32 bits.
MOST_TOKENS = 2**31 - 1
ACCOUNT = "account.json"


def cache_key(
    data: DataSection, renderer: Renderer, digests: list[str], max_seq_length: int, seed: int, recipe_dir: Path
) -> str:
    """The name of the cache folder: SHA-256 over everything that the prepared rows depend on."""
    facts, template = renderer.tokenizer, renderer.template
    parts = {
        "format": [FORMAT, __version__],
        "data": data.model_dump(mode="json"),
        # Rows name their file, so that the same file under another path is prepared again.
        "folder": str(recipe_dir.resolve()),
        "contents": digests,
        "tokenizer": [facts.sha256, facts.bos_token, facts.eos_token, facts.unk_token, facts.pad_token],
        "stops": [facts.stop_tokens, facts.adds_bos],
        "template": template.sha256 if template else None,
        # A template that asks for the date writes other text tomorrow.
        "today": date.today().isoformat() if template and "strftime_now" in template.source else None,
        "settings": [max_seq_length, seed],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save(folder: Path, sets: dict[str, RowSet]) -> bool:
    """Write the row sets to `folder`, which then is there whole or not at all. False when Arrow cannot hold them."""
    if any(rows.rows.tokens > MOST_TOKENS for rows in sets.values()):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, rows in sets.items():
            _write_arrow(made / f"{name}.arrow", rows.rows)
        account = {name: _account(rows) for name, rows in sets.items()}
        (made / ACCOUNT).write_text(json.dumps(account), encoding="utf-8")
        for file in made.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if folder.exists():
            if load(folder) is not None:  # another run was faster; what it wrote is the same
                return True
            shutil.rmtree(folder)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return True


def load(folder: Path) -> dict[str, RowSet] | None:
    """The row sets of `folder`, mapped, or None when it is not there or not whole."""
    try:
        account = json.loads((folder / ACCOUNT).read_text(encoding="utf-8"))
        return {name: _row_set(folder / f"{name}.arrow", entry) for name, entry in account.items()}
    except (OSError, ValueError, KeyError):
        return None


def _write_arrow(path: Path, rows: Rows) -> None:
    import pyarrow

    def column(values: Any) -> Any:
        return pyarrow.Array.from_buffers(pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)])

    ends = column(rows.ends)
    columns = {
        "input_ids": pyarrow.ListArray.from_arrays(ends, column(rows.ids)),
        "labels": pyarrow.ListArray.from_arrays(ends, column(rows.labels)),
        "length": pyarrow.array(rows.lengths, pyarrow.int32()),
        "path": pyarrow.DictionaryArray.from_arrays(column(rows.path_numbers), pyarrow.array(rows.paths, "string")),
        "line": column(rows.lines),
    }
    batch = pyarrow.RecordBatch.from_arrays(list(columns.values()), list(columns))
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read_arrow(path: Path) -> Rows:
    import pyarrow

    # pyarrow.lib.ArrowInvalid, raised for a damaged file, is a ValueError.
    with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as reader:
        batch = reader.read_next_batch()

    def view(values: Any) -> memoryview[int]:
        buffer = memoryview(values.buffers()[1]).cast("i")
        return buffer[values.offset : values.offset + len(values)]

    rows = Rows()
    rows.ids, rows.labels = view(batch["input_ids"].values), view(batch["labels"].values)
    rows.ends = memoryview(batch["input_ids"].buffers()[1]).cast("i")[: len(batch) + 1]
    rows.paths = batch["path"].dictionary.to_pylist()
    rows.path_numbers, rows.lines = view(batch["path"].indices), view(batch["line"])
    return rows


def _account(rows: RowSet) -> dict[str, Any]:
    return {
        "trained_tokens": rows.rows.trained_tokens,
        "read": rows.read,
        "overlong": [asdict(entry) for entry in rows.overlong],
        "rejected": [asdict(problem) for problem in rows.rejected],
        "repeated": [[asdict(row), asdict(first)] for row, first in rows.repeated],
        "leaked": [asdict(problem) for problem in rows.leaked],
        "by_source": rows.by_source,
        "examples": [_example_record(example) for example in rows.examples],
    }


def _row_set(path: Path, entry: dict[str, Any]) -> RowSet:
    rows = _read_arrow(path)
    rows.trained_tokens = entry["trained_tokens"]
    return RowSet(
        rows=rows,
        read=entry["read"],
        overlong=[Overlong(**{**one, "where": Where(**one["where"])}) for one in entry["overlong"]],
        rejected=[_problem(one) for one in entry["rejected"]],
        repeated=[(Where(**row), Where(**first)) for row, first in entry["repeated"]],
        leaked=[_problem(one) for one in entry["leaked"]],
        by_source=entry["by_source"],
        examples=[_example(one) for one in entry["examples"]],
    )


def _problem(record: dict[str, Any]) -> Problem:
    return Problem(**{**record, "where": Where(**record["where"])})


def _example_record(example: Example) -> dict[str, Any]:
    messages = [[m.role, m.content, dict(m.extra), m.trained] for m in example.messages]
    tools = [dict(tool) for tool in example.tools]
    return {"where": asdict(example.where), "messages": messages, "tools": tools, "text": example.text}


def _example(record: dict[str, Any]) -> Example:
    messages = tuple(Message(*one) for one in record["messages"])
    return Example(Where(**record["where"]), messages, tuple(record["tools"]), record["text"])
