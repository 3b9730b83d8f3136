"""The rows of a run on its page: their account, how long they are, and which tokens carry loss."""

from __future__ import annotations

from fastft.report.charts import bar_chart
from fastft.report.html import Markup, element, joined
from fastft.runs.rows_seen import MaskedRow, RowsSeen


def account_part(seen: RowsSeen) -> Markup:
    """A sentence for each set of rows, and one for each reason to leave some out."""
    parts = []
    for each in seen.accounts:
        parts.append(element("p", f"{each.counts}."))
        parts += [element("p", f"{note}.", class_="soft") for note in each.notes]
    return joined(*parts)


def lengths_part(seen: RowsSeen) -> Markup:
    """The histogram of the lengths of training rows."""
    if not seen.lengths:
        return joined()
    chart = bar_chart(
        "length of training rows", "tokens of a row", "rows", [(each.longest, each.rows) for each in seen.lengths]
    )
    meaning = (
        "Rows of very different lengths in one micro-batch are padded to the longest. A few rows that are far longer"
        " than the rest decide how much memory a step needs."
    )
    figure = element("figure", element("h3", "length of training rows"), chart, element("figcaption", meaning))
    return element("div", figure, class_="charts")


def masks_part(seen: RowsSeen) -> Markup:
    """The first rows as they are trained, with the text that carries loss marked."""
    if not seen.shown:
        return joined()
    head = element("h3", "The first rows as they are trained")
    note = element(
        "p", "Marked text carries loss: the model learns to write it. The rest it only reads.", class_="soft"
    )
    return joined(head, note, *(_masked(row) for row in seen.shown))


def _masked(row: MaskedRow) -> Markup:
    place = element("p", f"{row.where}: {row.tokens} tokens, {row.trained_tokens} carry loss", class_="soft")
    parts = (element("ins", part.text) if part.has_loss else part.text for part in row.parts)
    return joined(place, element("pre", *parts))
