"""`fastft data`: repeats, leaks, contradictions and imbalance in the data of a recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.added_tokens import tokenizer_of
from fastft.data.held_out import held_out_rows
from fastft.data.hygiene import examine
from fastft.errors import MachineError
from fastft.planning.check import check
from fastft.probe.base_model import find_base_model
from fastft.recipe.loader import LoadedRecipe, load
from fastft.report.hygiene import print_hygiene

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def data_in_terminal(recipe: Path, overrides: Sequence[str], *, as_json: bool, personal: bool) -> None:
    """Print what the rows hold, repeats, leaks, contradictions, imbalance and, with `personal`, personal data.

    Raises:
        FastftError: recipe or data cannot be used.
    """
    loaded = load(recipe, overrides)
    check(loaded)
    data, seed = loaded.recipe.data, loaded.recipe.train.seed
    chosen = held_out_rows(data, seed, loaded.folder, loaded.where)
    tokenizer, own = _tokenizer(loaded), loaded.recipe.labelled
    found = examine(data, loaded.folder, tokenizer=tokenizer, personal=personal, chosen=chosen, own=own)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        print_hygiene(found)


def _tokenizer(loaded: LoadedRecipe) -> Tokenizer | None:
    """The tokenizer of the base model when its files are on this machine; else tokens are not counted."""
    wanted = loaded.recipe.model
    try:
        where, pickled = loaded.where("model.id"), not wanted.use_safetensors
        model = find_base_model(wanted.id, wanted.revision, loaded.folder, where, pickled=pickled)
        if not model.is_here or model.folder is None:
            return None
        return tokenizer_of(loaded.recipe.data, model.folder, loaded.where).tokenizer
    except MachineError:
        return None
