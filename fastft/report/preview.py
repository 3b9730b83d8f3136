"""Show rows as they are trained: tokens with loss in colour, or between marks where there is no colour."""

from __future__ import annotations

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from fastft.data.preview import PreviewRow


def print_row(console: Console, row: PreviewRow) -> None:
    """Print one row: its place, its counts, and its text with its own line ends."""
    counts = f"{row.tokens} tokens, {row.trained_tokens} carry loss"
    if row.dropped_tokens:
        counts += f", {row.dropped_tokens} left out"
    place = f"{row.where}, {row.verdict}" if row.verdict else str(row.where)
    console.print(Rule(Text(f"{place}: {counts}"), align="left", style="dim"))
    coloured = Text.assemble(*((piece.text, "bold green" if piece.trained else "dim") for piece in row.pieces))
    console.print(coloured if console.color_system else Text(row.marked()), soft_wrap=True)
