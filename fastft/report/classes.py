"""The figures of a classification on the terminal and on the page: before and after, by label, the confusion."""

from __future__ import annotations

from rich.table import Table

from fastft.report.html import Markup, element, joined, table
from fastft.runs.classification import BeforeAndAfter, Classification

# Columns of a confusion that a page can hold.
MOST_SHOWN = 20


def figure_rows(found: BeforeAndAfter) -> list[tuple[str, str, str]]:
    """(name, untrained head, trained model) of each figure; the first row has the majority beside the accuracy."""
    before, after, common = found.before, found.after, found.majority
    return [
        (
            f"held-out accuracy (commonest label: {common.accuracy:.1%})",
            f"{before.accuracy:.1%}",
            f"{after.accuracy:.1%}",
        ),
        ("macro F1", f"{before.macro_f1:.3f}", f"{after.macro_f1:.3f}"),
        ("weighted F1", f"{before.weighted_f1:.3f}", f"{after.weighted_f1:.3f}"),
        ("calibration error", f"{before.calibration_error:.3f}", f"{after.calibration_error:.3f}"),
    ]


def class_table(found: Classification) -> Table:
    """Precision, recall and F1 of each label after training, for the terminal."""
    made = Table(show_edge=False, pad_edge=False)
    for name in ("label", "rows", "precision", "recall", "F1"):
        made.add_column(name, justify="left" if name == "label" else "right")
    for row in _by_label(found):
        made.add_row(*row)
    return made


def _by_label(found: Classification) -> list[tuple[str, ...]]:
    return [
        (one.label, str(one.rows), f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}")
        for one in found.classes
    ]


def classes_section(found: BeforeAndAfter) -> Markup:
    """The same for the page, with the confusion matrix."""
    parts = [
        table(("", "before", "after"), figure_rows(found)),
        element("h3", "By label, after training"),
        table(("label", "rows", "precision", "recall", "F1"), _by_label(found.after)),
    ]
    names = [one.label for one in found.after.classes]
    if found.after.confusion and len(names) <= MOST_SHOWN:
        rows = [(name, *map(str, row)) for name, row in zip(names, found.after.confusion, strict=True)]
        parts += [element("h3", "True label (rows) and predicted label (columns)"), table(("", *names), rows)]
    return joined(*parts)
