"""Prepared rows on disk: written in batches while they are made, then mapped by this run and later ones.

The key depends on contents, not on times: the bytes of the data files, the tokenizer, the chat template and every
setting that changes a token. The files are Arrow streams in the form of `datasets`:
`Dataset.from_file(folder / "train.arrow")` gives the columns input_ids, labels, length, path and line without a copy,
and eval.arrow the column example too.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft import __version__
from fastft.data.rows import Block, Integers, Overlong, Rows, RowSet, RowWriter, Split
from fastft.errors import Problem, Where
from fastft.files.atomic import publish

if TYPE_CHECKING:
    from fastft.data.render import Renderer
    from fastft.recipe.model import DataSection

# Increase it when the same key would lead to other tokens.
FORMAT = 4
ACCOUNT = "account.json"
# Makes the writer for the row set of that name.
WriterOf = Callable[[str], RowWriter]


def cache_key(
    data: DataSection, renderer: Renderer, digests: list[str], max_seq_length: int, seed: int, recipe_dir: Path
) -> str:
    """The name of the cache folder: the SHA-256 of everything that the prepared rows depend on."""
    facts, template = renderer.tokenizer, renderer.template
    parts = {
        "format": [FORMAT, __version__],
        "data": data.model_dump(mode="json"),
        # Rows contain the path of their file, so that the same file in another folder is prepared again.
        "folder": str(recipe_dir.resolve()),
        "contents": digests,
        "tokenizer": [facts.sha256, facts.bos_token, facts.eos_token, facts.unk_token, facts.pad_token],
        "stops": [facts.stop_tokens, facts.adds_bos],
        "template": template.sha256 if template else None,
        "settings": [max_seq_length, seed],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save(folder: Path, make: Callable[[WriterOf], dict[str, RowSet]]) -> dict[str, RowSet]:
    """Write the row sets of `make` to `folder`, whole or not at all. Returns them, mapped from there.

    `make` must write the rows of each set with the writer of the set's name.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir(mode=0o700)  # rows may be private
        sets = make(lambda name: ArrowWriter(made / f"{name}.arrow"))
        for file in made.iterdir():
            if file.stem not in sets:  # only needed to make the sets
                file.unlink()
        account = {name: _account(rows) for name, rows in sets.items()}
        (made / ACCOUNT).write_text(json.dumps(account), encoding="utf-8")
        if load(folder) is None:  # else another run was faster; what it wrote is the same
            publish(made, folder)
    return sets


def load(folder: Path) -> dict[str, RowSet] | None:
    """The row sets of `folder`, mapped, or None when it is missing or damaged."""
    try:
        account = json.loads((folder / ACCOUNT).read_text(encoding="utf-8"))
        return {name: _row_set(folder / f"{name}.arrow", entry) for name, entry in account.items()}
    except (OSError, ValueError, KeyError):
        return None


class ArrowWriter(RowWriter):
    """Writes each full block to an Arrow stream as one record batch, and maps the file at the end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._stream: Any = None

    def _store(self, block: Block) -> None:
        import pyarrow

        lengths = array("i", (end - start for start, end in pairwise(block.ends)))
        numbers = [as_arrow(values) for values in (block.ends, block.ids, block.labels, lengths, block.lines)]
        ends, ids, labels, length, line = numbers
        columns = {
            name: pyarrow.ListArray.from_arrays(ends, values)
            for name, values in (("input_ids", ids), ("labels", labels))
        }
        columns |= {"length": length, "path": pyarrow.array(block.paths, pyarrow.string()), "line": line}
        columns["rejected_from"] = as_arrow(block.rejected or array("i", [-1] * len(block)))
        if block.examples:
            columns["example"] = pyarrow.array(block.examples, pyarrow.string())
        batch = pyarrow.RecordBatch.from_pydict(columns)
        if self._stream is None:
            self._stream = pyarrow.ipc.new_stream(str(self._path), batch.schema)
        self._stream.write_batch(batch)

    def _stored(self) -> list[Block]:
        if self._stream is None:  # a file without rows needs columns too
            self._store(Block(array("i"), array("i"), array("i", [0]), array("i"), []))
        self._stream.close()
        return _blocks(self._path)


def as_arrow(values: Integers) -> Any:
    """The integers as an Arrow array, without a copy."""
    import pyarrow

    return pyarrow.Array.from_buffers(pyarrow.int32(), len(values), [None, pyarrow.py_buffer(values)])


def _blocks(path: Path) -> list[Block]:
    import pyarrow

    def view(values: Any) -> memoryview[int]:
        buffer = memoryview(values.buffers()[1]).cast("i")
        return buffer[values.offset : values.offset + len(values)]

    def block(batch: Any) -> Block:
        # The second buffer of a list array has the end of each list.
        ends = memoryview(batch["input_ids"].buffers()[1]).cast("i")[: len(batch) + 1]
        ids, labels = view(batch["input_ids"].values), view(batch["labels"].values)
        examples = batch["example"] if "example" in batch.schema.names else ()
        rejected = view(batch["rejected_from"])
        return Block(ids, labels, ends, view(batch["line"]), batch["path"], examples, rejected)

    # For a damaged file pyarrow raises ArrowInvalid, which is a ValueError.
    with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as reader:
        return [block(batch) for batch in reader if len(batch)]


def _account(rows: RowSet) -> dict[str, Any]:
    return {
        "rows": len(rows.rows),
        "trained_tokens": rows.rows.trained_tokens,
        "read": rows.read,
        "overlong": [asdict(entry) for entry in rows.overlong],
        "rejected": [asdict(problem) for problem in rows.rejected],
        "repeated": [[asdict(row), asdict(first)] for row, first in rows.repeated],
        "leaked": [asdict(problem) for problem in rows.leaked],
        "split": [asdict(entry) for entry in rows.split],
        "dropped": rows.dropped,
        "by_source": rows.by_source,
        "unused": rows.unused,
    }


def _row_set(path: Path, entry: dict[str, Any]) -> RowSet:
    rows = Rows(_blocks(path), entry["trained_tokens"])
    if len(rows) != entry["rows"]:  # a stream that is cut between two batches reads without an error
        raise ValueError(f"{path} has {len(rows)} rows instead of {entry['rows']}")
    return RowSet(
        rows=rows,
        read=entry["read"],
        overlong=[Overlong(**{**one, "where": Where(**one["where"])}) for one in entry["overlong"]],
        rejected=[_problem(one) for one in entry["rejected"]],
        repeated=[(Where(**row), Where(**first)) for row, first in entry["repeated"]],
        leaked=[_problem(one) for one in entry["leaked"]],
        split=[Split(**{**one, "where": Where(**one["where"])}) for one in entry["split"]],
        dropped=entry["dropped"],
        by_source=entry["by_source"],
        unused=Counter(entry["unused"]),
    )


def _problem(record: dict[str, Any]) -> Problem:
    return Problem(**{**record, "where": Where(**record["where"])})
