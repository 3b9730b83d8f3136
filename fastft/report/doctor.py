"""The findings of `fastft doctor` as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.probe.doctor import Finding

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "broken": ("broken", "bold red")}


def print_findings(findings: Sequence[Finding]) -> None:
    """One line a finding, and below it what mends it."""
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark, style = _MARKS[finding.state]
        table.add_row(Text(mark, style=style), Text(finding.name), Text(finding.detail))
        if finding.mend:
            table.add_row("", "", Text(f"→ {finding.mend}", style="cyan"))
    console = Console(highlight=False)
    console.print(table)
    broken = sum(finding.state == "broken" for finding in findings)
    console.print(f"{broken} broken" if broken else "ready to train", style="bold red" if broken else "bold green")
