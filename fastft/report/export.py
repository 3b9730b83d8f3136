"""The table of exported artefacts and how close each is to the trained model."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastft.report.units import size


def print_exports(record: Path) -> None:
    """Print export.json as a table."""
    table = Table(title=str(record.parent), title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name in ("file", "size", "same token", "or near tie", "needed", "mean KL", ""):
        table.add_column(name, justify="left" if name in ("file", "") else "right", overflow="fold")
    for entry in json.loads(record.read_text(encoding="utf-8"))["artefacts"]:
        parity = entry["parity"]
        figures = ["", "", "", "", "not compared"]
        if parity is not None:
            state = "proven" if parity["passed"] else "FAILED"
            shares = [f"{parity['top1_agreement']:.1%}", f"{parity['agreement']:.1%}", f"{parity['bar']:.0%}"]
            figures = [*shares, f"{parity['mean_kl']:.1e}", state]
        table.add_row(entry["path"], size(entry["size_bytes"]), *figures)
    Console(highlight=False).print(table)
