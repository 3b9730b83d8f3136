"""Questions as a person types them or a pipe brings them: a line each, or several lines between triple quotes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

BLOCK = '"""'
PROMPT, GOES_ON = "> ", "... "

Read = Callable[[str], str]
"""Gives the next line after a prompt; raises EOFError at the end, KeyboardInterrupt at Ctrl+C."""


def questions(read: Read) -> Iterator[str]:
    """Each line; what stands between triple quotes is one, and begins with a line break: no command.

    Ctrl+C drops a question that is being typed. A block that never ends is asked when the input ends.
    """
    while True:
        try:
            line = read(PROMPT)
            opened = line.strip().removeprefix(BLOCK)
            yield line if opened == line.strip() else "\n" + _block(opened, read)
        except EOFError:
            return
        except KeyboardInterrupt:
            print()


def _block(first: str, read: Read) -> str:
    lines = [first]
    with contextlib.suppress(EOFError):
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(read(GOES_ON).rstrip("\r\n"))
    return "\n".join(lines).rstrip().removesuffix(BLOCK).strip("\n")
