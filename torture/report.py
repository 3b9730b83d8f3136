"""docs/reliability.md: the figures of all outcomes."""

from __future__ import annotations

from pathlib import Path

from torture.case import Ledger


def write_report(ledger: Ledger, seed: int, path: Path) -> None:
    path.write_text(f"{len(ledger.lines())} {seed}\n")
