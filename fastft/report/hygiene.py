"""The report of `fastft data`: problems of a data set, each with the rows to look at."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastft.data.hygiene import Finding, Hygiene
from fastft.data.traits import Traits
from fastft.data.unused import unused_notes

# Findings of a kind, and rows of a finding, on the screen; `--json` has all.
SHOWN = 3

_TITLES = {
    "exact_repeats": "exact repeats",
    "near_repeats": "near repeats",
    "leaked_rows": "evaluation rows that are trained",
    "leaked_prompts": "evaluation questions that are trained",
    "contradictions": "one question, different answers",
    "near_contradictions": "nearly one question, different answers",
    "repeated_answers": "answers given very often",
    "outliers": "far longer than the rest",
    "cut_answers": "answers that seem to be cut",
    "personal": "looks like personal data or a secret; --no-personal leaves this out",
}


def print_hygiene(found: Hygiene) -> None:
    """Print counts, balances, and the first findings of each kind with their first rows."""
    console = Console(highlight=False)
    unreadable = f", {found.unreadable} unreadable (`fastft check --data` lists them)" if found.unreadable else ""
    console.print(f"{found.rows} training rows, {found.evaluation_rows} held-out rows{unreadable}")
    least, low, middle, high, most = found.lengths
    console.print(f"characters in a row: {least} to {most}, middle half {low} to {high}, median {middle}")
    console.print(f"questions with different first words: {found.prompt_diversity:.0%}")
    console.print(_traits(found.traits))
    for note in unused_notes("training", Counter(found.unused)):
        console.print(Text(note))
    for title, counts in (("source", found.sources), ("script", found.scripts), ("answer", found.labels)):
        if len(counts) > 1:
            console.print(_balance(title, counts))
    if not found.findings:
        console.print("no problems found", style="green")
    for kind, title in _TITLES.items():
        group = [finding for finding in found.findings if finding.kind == kind]
        if group:
            _print_group(console, title, group)


def _traits(by_source: dict[str, Traits]) -> Table:
    """A line a source: what its rows hold."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("source", "rows", "system text", "tools", "reasoning", "cut", "characters", "tokens"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for source, traits in by_source.items():
        counts = (traits.rows, traits.system, traits.tools, traits.reasoning, traits.cut_answers, traits.characters)
        tokens = "not counted" if traits.tokens is None else f"{traits.tokens:,}"
        table.add_row(Text(source[:40]), *(f"{count:,}" for count in counts), tokens)
    return table


def _balance(title: str, counts: dict[str, int]) -> Table:
    total = sum(counts.values())
    grid = Table.grid(padding=(0, 2))
    for name, count in counts.items():
        grid.add_row(Text(f"{title} {name[:40]}", style="dim"), f"{count:,}", f"{count / total:.0%}")
    return grid


def _print_group(console: Console, title: str, group: list[Finding]) -> None:
    rows = sum(len(finding.rows) for finding in group)
    console.print(Text(f"{title}: {len(group)} ({rows} rows)", style="bold yellow"))
    for finding in group[:SHOWN]:
        places = ", ".join(str(where) for where in finding.rows[:SHOWN])
        more = f" and {len(finding.rows) - SHOWN} more" if len(finding.rows) > SHOWN else ""
        console.print(Text(f"  {places}{more}" + (f": {finding.note}" if finding.note else "")))
    if len(group) > SHOWN:
        console.print(f"  and {len(group) - SHOWN} more; --json lists all", style="dim")
