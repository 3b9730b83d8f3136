"""Show answers: streamed as text, or of several models side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

AnswerStreams = Sequence[tuple[str, Iterator[str]]]
Answering = Callable[[AnswerStreams], None]


def write_answers(write: Callable[[str], object], answers: AnswerStreams, *, visible: bool) -> None:
    """Write one answer after the other, each with its name when there are several.

    `visible`: escape control characters, because a terminal acts on them and a model can write any.
    """
    for name, pieces in answers:
        if len(answers) > 1:
            write(f"{name}: ")
        for piece in pieces:
            write(printable(piece) if visible else piece)
        write("\n")


def show_beside(console: Console, answers: AnswerStreams) -> None:
    """Show the answers in columns, once all are complete."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), expand=True)
    cells = []
    for name, pieces in answers:
        with console.status(f"{name} is answering"):
            cells.append(Text(printable("".join(pieces))))
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*cells)
    console.print(table)


def printable(text: str) -> str:
    """`text` with every control character escaped, except line breaks and tabs."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
