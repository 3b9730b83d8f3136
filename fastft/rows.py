"""The base model's files and the prepared rows of a recipe, brought to where every command finds the same ones."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fastft.data.prepare import Prepared, prepare
from fastft.data.rows import RowSet, reject_record
from fastft.data.tokenizer import load_tokenizer
from fastft.errors import MachineError, Problem, Where
from fastft.probe.base_model import BaseModel, cache_folder, find_base_model
from fastft.probe.hub import download
from fastft.recipe.loader import LoadedRecipe

Say = Callable[[str], None]


def fetched(model: BaseModel, revision: str | None, where: Where, say: Say) -> BaseModel:
    """The base model with its files on this machine, downloaded when it is a Hub model that is not.

    Raises:
        MachineError: offline, unknown, gated or unreachable.
    """
    if model.source != "hub" or model.is_here:
        return model
    say(f"downloading {model.id}")
    return dataclasses.replace(model, folder=download(model.id, revision, where))


def converted(model: BaseModel, where: Where, say: Say) -> Path:
    """The folder of the base model, converted to safetensors when it is a GGUF file that was not yet.

    Raises:
        MachineError: the file cannot be converted, or what converts it is not installed.
    """
    if model.folder is None:
        raise MachineError(Problem(where, "model.id", "is not on this machine", "download it first", model.id))
    if not model.is_here and model.gguf is not None:
        say(f"converting {model.gguf.name} to safetensors, once (about 40 s); kept in {model.folder}")
        importlib.import_module("fastft.engine.convert").convert_gguf(model.gguf, model.folder)
    return model.folder


def prepared_rows(
    loaded: LoadedRecipe, folder: Path, progress: Callable[[int], None] | None = None, *, refuse_broken: bool = True
) -> Prepared:
    """The rows that are trained, rendered with the tokenizer in `folder`; mapped from the cache when nothing changed.

    `progress` is called with the number of rows read so far. Without `refuse_broken` they are given however many are
    broken, so that all of these can be listed.

    Raises:
        DataError: a source cannot be read, or too many of its rows are broken.
    """
    recipe = loaded.recipe
    return prepare(
        recipe.data,
        load_tokenizer(folder),
        max_seq_length=recipe.model.max_seq_length,
        seed=recipe.train.seed,
        recipe_dir=loaded.folder,
        locate=loaded.where,
        progress=progress,
        cache_dir=_row_cache(),
        refuse_broken=refuse_broken,
    )


def tokenizer_folder(loaded: LoadedRecipe, say: Say) -> Path:
    """The folder of the base model for commands that only read rows, downloaded or converted when it must be.

    Raises:
        MachineError: it cannot be had.
    """
    wanted, where = loaded.recipe.model, loaded.where("model.id")
    model = fetched(find_base_model(wanted.id, wanted.revision, loaded.folder, where), wanted.revision, where, say)
    if model.is_here:
        return converted(model, where, say)
    with tempfile.TemporaryDirectory() as folder, library_output_to(Path(folder) / "log.txt"):
        return converted(model, where, say)


def _row_cache() -> Path | None:
    """Where prepared rows are kept; None without pyarrow, which reads and writes them."""
    return cache_folder() / "rows" if importlib.util.find_spec("pyarrow") is not None else None


def account(name: str, rows: RowSet, data_format: str) -> tuple[str, list[str]]:
    """What became of the rows that were read: a sentence, and a note for each reason to leave some out."""
    tokens, trained = rows.rows.tokens, rows.rows.trained_tokens
    said = f"{len(rows.rows)} {name} rows ({data_format}), {tokens} tokens, {trained} carry loss"
    lost = [row for row in rows.overlong if not row.kept_tokens]
    kept = [row for row in rows.overlong if row.kept_tokens]
    reasons = [
        (len(lost), "longer than max_seq_length and left out"),
        (len(kept), "longer than max_seq_length and trained in part (data.overlong)"),
        (len(rows.rejected), "broken and left out"),
        (len(rows.repeated), "repeats of another row and left out (data.deduplicate)"),
        (len(rows.leaked), "trained as well, and left out of the evaluation"),
    ]
    notes = [f"{count} {name} {_rows(count)} {why}; see rejects.jsonl" for count, why in reasons if count]
    return said, notes


def _rows(count: int) -> str:
    return "row is" if count == 1 else "rows are"


def reject_lines(prepared: Prepared) -> str:
    """rejects.jsonl: each row that is not trained as it stands, with its place and the reason; "" without any."""
    lines = []
    for name, rows in (("train", prepared.train), ("eval", prepared.eval)):
        if rows is None:
            continue
        for row in rows.overlong:
            reason = f"{row.tokens} tokens, longer than max_seq_length; {row.kept_tokens} of them are trained"
            lines.append({"split": name, "file": row.where.path, "line": row.where.line, "reason": reason})
        for where, first in rows.repeated:
            lines.append({"split": name, "file": where.path, "line": where.line, "reason": f"repeats {first}"})
        lines += [{"split": name, **reject_record(problem)} for problem in (*rows.rejected, *rows.leaked)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@contextlib.contextmanager
def library_output_to(log: Path) -> Iterator[None]:
    """Send what is written to the process's standard output and error to `log`, file descriptors and logging included.

    A console that shows progress meanwhile must hold its own copy of the terminal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        handler = logging.StreamHandler()
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            logging.getLogger().removeHandler(handler)
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
