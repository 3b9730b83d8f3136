"""`fastft data`: repeats, leaks, contradictions and imbalance in the data of a recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from fastft.data.hygiene import examine
from fastft.planning.check import check
from fastft.recipe.loader import load
from fastft.report.hygiene import print_hygiene


def data_in_terminal(recipe: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Print repeats, leaks, contradictions and imbalance.

    Raises:
        FastftError: recipe or data cannot be used.
    """
    loaded = load(recipe, overrides)
    check(loaded)
    found = examine(loaded.recipe.data, loaded.folder)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        print_hygiene(found)
