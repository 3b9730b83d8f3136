"""`fastft clean`: checkpoints of finished runs and stale caches, shown first and then removed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.errors import MachineError, Problem, UsageError, Where
from fastft.report.units import size
from fastft.runs.leftovers import Leftover, leftover_caches, leftover_checkpoints


def clean_in_terminal(folder: Path, unused_days: float, *, yes: bool, as_json: bool) -> None:
    """Show what can go and how much that frees; remove it with `yes`, or when the user agrees on a terminal.

    Raises:
        UsageError: there is no such folder.
        MachineError: something cannot be removed.
    """
    if not folder.is_dir():
        raise UsageError(Problem(Where(str(folder)), "", "there is no such folder", "name the folder of your runs"))
    checkpoints, kept = leftover_checkpoints(folder)
    found = [*checkpoints, *leftover_caches(unused_days)]
    if not as_json:
        _show(found, kept)
    agreed = bool(found) and (yes or (not as_json and _agrees()))
    if agreed:
        _remove(found)
    total = sum(each.size_bytes for each in found)
    if as_json:
        entries = [{"path": str(each.path), "what": each.what, "size_bytes": each.size_bytes} for each in found]
        print(json.dumps({"found": entries, "size_bytes": total, "removed": agreed, "kept": kept}, indent=2))
    elif found:
        print(f"removed {size(total)}" if agreed else "nothing was removed; --yes removes it without a question")


def _show(found: Sequence[Leftover], kept: Sequence[str]) -> None:
    for sentence in kept:
        print(f"stays: {sentence}")
    if not found:
        print("nothing to remove")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("folder", overflow="fold")
    for each in found:
        table.add_row(size(each.size_bytes), each.what, Text(str(each.path)))
    Console().print(table)
    print(f"{size(sum(each.size_bytes for each in found))} in {len(found)} folder{'s' * (len(found) > 1)}")


def _agrees() -> bool:
    """Whether the user says yes; no where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return input("Remove them? [y/N] ").strip().lower() in ("y", "yes")


def _remove(found: Sequence[Leftover]) -> None:
    for each in found:
        try:
            each.remove()
        except OSError as error:
            wrong = f"cannot be removed: {error.strerror}"
            raise MachineError(Problem(Where(str(each.path)), "", wrong, "remove it yourself")) from error
