"""The table of exported artefacts and how close each is to the trained model."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastft.exports.record import read_exports
from fastft.report.units import size


def print_exports(out: Path) -> None:
    """Print the record of the exports in the folder `out` as a table."""
    table = Table(title=str(out), title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name in ("file", "size", "same token", "or near tie", "needed", "mean KL", ""):
        table.add_column(name, justify="left" if name in ("file", "") else "right", overflow="fold")
    for artefact in read_exports(out).artefacts:
        parity = artefact.parity
        figures = ["", "", "", "", "not compared"]
        if parity is not None:
            state = "proven" if parity.passed else "FAILED"
            shares = [f"{parity.top1_agreement:.1%}", f"{parity.agreement:.1%}", f"{parity.bar:.0%}"]
            figures = [*shares, f"{parity.mean_kl:.1e}", state]
            if not parity.prompts and parity.passed:
                figures = ["", "", "", "", "only its tensors compared" if parity.tensors else "not compared"]
        table.add_row(artefact.path, size(artefact.size_bytes), *figures)
    Console(highlight=False).print(table)
