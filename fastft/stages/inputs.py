"""The files of the base model and the prepared rows of a recipe, the same for every command."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastft.console import Say, library_output_to
from fastft.data.added_tokens import tokenizer_of
from fastft.data.prepare import Prepared, prepare
from fastft.data.sentencepiece_model import write_fast_tokenizer
from fastft.errors import MachineError, Problem, Where
from fastft.files.cache import cache_folder
from fastft.files.seal import sealed_folder
from fastft.probe.base_model import BaseModel, find_base_model
from fastft.probe.hub import fetch_small_files
from fastft.recipe.loader import LoadedRecipe


def convert(model: BaseModel, where: Where, say: Say) -> Path:
    """The folder of the base model; converts a GGUF file, pickles or another layout first, once.

    Raises:
        MachineError: the file cannot be converted, or a package for it is missing.
    """
    if model.folder is None:
        raise MachineError(Problem(where, "model.id", "is not on this machine", "download it first", model.id))
    if not model.is_here and model.gguf is not None:
        say(f"converting {model.gguf.name} to safetensors, once (about 40 s); kept in {model.folder}")
        from fastft.engine.convert import convert_gguf

        convert_gguf(model.gguf, model.folder)
    elif not model.is_here and model.original is not None:
        layout = model.layout
        found = "its weights are pickles" if layout is None else f"a {layout.name} is a Llama under other names"
        say(f"{found}: converting {model.id}, once; kept in {model.folder}")
        from fastft.engine.relayout import relayout

        relayout(model.original, model.folder, layout, where)
    return model.folder


def prepare_rows(
    loaded: LoadedRecipe, folder: Path, progress: Callable[[int], None] | None = None, *, refuse_broken: bool = True
) -> Prepared:
    """The training and held-out rows, rendered with the tokenizer in `folder`, or from the cache if nothing changed.

    `progress` is called with the number of rows read so far. Without `refuse_broken`, any number of broken rows is
    accepted, so that all of them can be listed.

    Raises:
        DataError: a source cannot be read, or too many of its rows are broken.
    """
    recipe = loaded.recipe
    return prepare(
        recipe.data,
        tokenizer_of(recipe.data, folder, loaded.where),
        max_seq_length=recipe.model.max_seq_length,
        seed=recipe.train.seed,
        recipe_dir=loaded.folder,
        locate=loaded.where,
        progress=progress,
        # pyarrow writes the prepared rows and reads them.
        cache_dir=cache_folder() / "rows" if importlib.util.find_spec("pyarrow") is not None else None,
        refuse_broken=refuse_broken,
        own=recipe.labelled,
    )


def fetch_tokenizer(loaded: LoadedRecipe, say: Say) -> Path:
    """The folder of the base model, for commands that only read rows; downloads no weights, converts a package model.

    Raises:
        MachineError: it cannot be downloaded or converted.
    """
    wanted, where = loaded.recipe.model, loaded.where("model.id")
    pickled = not wanted.use_safetensors
    model = find_base_model(wanted.id, wanted.revision, loaded.folder, where, pickled=pickled)
    model = fetch_small_files(model, wanted.revision, where)
    if model.original is not None and not model.is_here:
        return _tokenizer_alone(model, model.original, where)
    with tempfile.TemporaryDirectory() as folder, library_output_to(Path(folder) / "log.txt"):
        return convert(model, where, say)


def _tokenizer_alone(model: BaseModel, original: Path, where: Where) -> Path:
    """The folder of the tokenizer of a model that is not converted yet, without its weights."""
    if model.layout is None or not (original / "tokenizer.model").is_file():
        return original
    assert model.folder is not None  # noqa: S101 -- a model with an original has it
    folder = model.folder.with_name(f"{model.folder.name}-tokenizer")
    if not folder.is_dir():
        with sealed_folder(folder) as stage:
            write_fast_tokenizer(original, stage, where)
    return folder
