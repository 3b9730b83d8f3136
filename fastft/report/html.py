"""HTML and SVG as text: whatever is not markup already is escaped, and holds no secret."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from fastft.console import redact

# What neither HTML nor UTF-8 can hold: control characters, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Markup(str):
    """Text that is HTML or SVG, made by `element`; all other text is escaped."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Any text of data, models or people as HTML, fit for content and for attributes in double quotes."""
    return Markup(html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", redact(text))))


def joined(*parts: str) -> Markup:
    """Parts one after the other, escaped where they are not markup."""
    return Markup("".join(part if isinstance(part, Markup) else escaped(part) for part in parts))


def element(name: str, *content: str, **attributes: str | float | None) -> Markup:
    """`<name attributes>content</name>`; `class_` is class, `a_b` is a-b, None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(f"{value}")}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{joined(*content)}</{name}>")


def key(name: str) -> Markup:
    """A key of a recipe as code, which may break after a dot and an underscore."""
    return element("code", Markup(re.sub(r"([._])", r"\1<wbr>", escaped(name))))


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: frozenset[int] = frozenset()) -> Markup:
    """A table that scrolls sideways where it is too wide; `numbers`: the columns that are aligned to the right."""

    def line(kind: str, cells: tuple[str, ...]) -> Markup:
        made = (element(kind, cell, class_="number" if index in numbers else None) for index, cell in enumerate(cells))
        return element("tr", *made)

    body = element("tbody", *(line("td", row) for row in rows))
    parts = (element("thead", line("th", head)), body) if any(head) else (body,)
    return element("div", element("table", *parts), class_="wide")
