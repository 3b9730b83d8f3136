"""`fastft preview`: rows as they are trained, token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastft.console import say
from fastft.data.preview import PreviewRow
from fastft.data.preview import preview as preview_row
from fastft.errors import Problem, UsageError, Where
from fastft.planning.check import check
from fastft.recipe.loader import LoadedRecipe, load
from fastft.report.preview import print_row
from fastft.report.rows import accounts
from fastft.stages.inputs import fetch_tokenizer, prepare_rows


def preview(loaded: LoadedRecipe, count: int, row: int | None) -> list[PreviewRow]:
    """The first `count` training rows, or the one whose 1-based number is `row`.

    Raises:
        UsageError: there is no such row.
        FastftError: recipe, data or tokenizer cannot be used.
    """
    folder = fetch_tokenizer(loaded, say)
    prepared = prepare_rows(loaded, folder)
    train = prepared.train
    for note in accounts(prepared)[0][1]:
        say(note)
    if row is not None and row > len(train.rows):
        wrong = f"there is no row {row}"
        raise UsageError(Problem(Where("--row"), "", wrong, f"write 1 to {len(train.rows)}"))
    chosen = [row - 1] if row is not None else range(min(count, len(train.rows)))
    tokenizer = prepared.renderer.tokenizer.tokenizer
    dropped = {entry.where: entry.tokens - entry.kept_tokens for entry in train.overlong}
    encoded = [train.rows[index] for index in chosen]
    shown = [preview_row(text, tokenizer, dropped.get(row.where, 0)) for row in encoded for text in row.texts]
    if loaded.recipe.preferred is None:
        return shown
    verdicts = ["chosen" if text.rejected_from is None else "rejected" for row in encoded for text in row.texts]
    return [replace(one, verdict=verdict) for one, verdict in zip(shown, verdicts, strict=True)]


def preview_in_terminal(recipe: Path, overrides: Sequence[str], *, count: int, row: int | None, as_json: bool) -> None:
    """Print those rows, the tokens with loss in colour."""
    loaded = load(recipe, overrides)
    check(loaded)
    rows = preview(loaded, count, row)
    if as_json:
        print(json.dumps([entry.as_json() for entry in rows], indent=2, ensure_ascii=False))
        return
    for entry in rows:
        print_row(Console(), entry)
