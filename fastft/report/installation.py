"""The findings of `fastft doctor` as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.probe.installation import Diagnosis

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "broken": ("broken", "bold red")}


def print_diagnoses(found: Sequence[Diagnosis]) -> None:
    """Print one line for each diagnosis, and its fix on the next line."""
    table = Table.grid(padding=(0, 2))
    for one in found:
        mark, style = _MARKS[one.state]
        table.add_row(Text(mark, style=style), Text(one.name), Text(one.detail))
        if one.fix:
            table.add_row("", "", Text(f"→ {one.fix}", style="cyan"))
    console = Console(highlight=False)
    console.print(table)
    broken = sum(one.state == "broken" for one in found)
    console.print(f"{broken} broken" if broken else "ready to train", style="bold red" if broken else "bold green")
