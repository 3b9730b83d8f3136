"""`fastft compare`: runs beside each other, from their records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastft.errors import MachineError, Problem, Where
from fastft.files.atomic import write_text
from fastft.report.comparison import as_json as comparison_as_json
from fastft.report.comparison import comparison_page, print_comparison
from fastft.runs.comparison import compare_runs


def compare_in_terminal(folders: Sequence[Path], html: Path | None, price: float | None, *, as_json: bool) -> None:
    """Print the comparison of the runs in `folders` with the first one, and write it as a page.

    Raises:
        UsageError: the folders are no runs, or too few.
        MachineError: a record of a run is damaged, or the page cannot be written.
    """
    made = compare_runs(folders)
    if html is not None:
        try:
            write_text(html, comparison_page(made, price))
        except OSError as error:
            wrong = f"cannot be written: {error.strerror}"
            raise MachineError(Problem(Where(str(html)), "--html", wrong, "name a file that you may write")) from error
    if as_json:
        print(json.dumps(comparison_as_json(made, price), indent=2, ensure_ascii=False, default=str))
    else:
        print_comparison(Console(), made, price)
        if html is not None:
            print(f"\n{html}")
