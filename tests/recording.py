"""docs/quickstart.svg: what a terminal shows of `make quickstart`, from the lines that README.md gives of a run."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
WIDTH = 122
# The first screen: the verdict, the table and what it took.
UNTIL = "trained weights"
_COLOURS = (
    (r"\bbetter\b|^Better:", "bold green"),
    (r"\bworse\b", "bold red"),
    (r"^\$ .*", "bold cyan"),
    (r"^\s+before\s+after.*|^runs/.*", "dim"),
)


def quickstart_svg() -> str:
    """The recorded lines as a picture that a page shows without a script or a font of its own."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) if block.startswith("Better:"))
    lines = block.splitlines()
    last = next(number for number, line in enumerate(lines) if line.startswith(UNTIL))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in ("$ make quickstart", *lines[: last + 1]):
        text = Text(line)
        for pattern, style in _COLOURS:
            text.highlight_regex(pattern, style)
        console.print(text, crop=True, no_wrap=True)
    drawn = console.export_svg(title="fastft run recipes/quickstart.toml", unique_id="quickstart")
    # The fonts of a reader's own machine: rich would fetch one.
    return (
        re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("Fira Code, monospace", "monospace") + "\n"
    )
