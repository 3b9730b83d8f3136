"""What happened to the rows that were read: sentences for people, and rejects.jsonl."""

from __future__ import annotations

import json

from fastft.data.labels import label_counts
from fastft.data.parts import DROPPED
from fastft.data.prepare import Prepared
from fastft.data.rows import RowSet, reject_record
from fastft.data.unused import unused_notes


def accounts(prepared: Prepared) -> list[tuple[str, list[str]]]:
    """For training and held-out rows: a sentence of counts, and a note for each reason to leave some out."""
    sets = (("training", prepared.train), ("held-out", prepared.eval))
    found = [_account(name, rows, prepared.format) for name, rows in sets if rows is not None]
    if prepared.labels is not None:
        for (name, rows), (_, notes) in zip(sets, found, strict=False):
            notes += [] if rows is None else _label_notes(name, rows, prepared)
    return found


def _label_notes(name: str, rows: RowSet, prepared: Prepared) -> list[str]:
    """The rows of each label, and the labels that training lacks."""
    assert prepared.labels is not None  # noqa: S101  who asks has labels
    counts, trained = (label_counts(one.rows, prepared.labels) for one in (rows, prepared.train))
    notes = [f"{name} rows by label: {', '.join(f'{label} {count}' for label, count in counts.items())}"]
    lacking = [label for label, count in counts.items() if not trained[label] and (count or rows is prepared.train)]
    return notes + [f"no training row has the label {label}: the model cannot learn it" for label in lacking]


def _account(name: str, rows: RowSet, data_format: str) -> tuple[str, list[str]]:
    tokens, trained = rows.rows.tokens, rows.rows.trained_tokens
    count = f"{len(rows.rows)} {name} row{'' if len(rows.rows) == 1 else 's'}"
    summary = f"{count} ({data_format}), {tokens} tokens, {trained} carry loss"
    dropped = [row for row in rows.overlong if not row.kept_tokens]
    kept = [row for row in rows.overlong if row.kept_tokens]
    reasons = [
        (len(dropped), "longer than max_seq_length and left out"),
        (len(kept), "longer than max_seq_length and trained in part (data.overlong)"),
        (len(rows.rejected), "broken and left out"),
        (len(rows.repeated), "repeats of another row and left out (data.deduplicate)"),
        (len(rows.leaked), "also trained, and left out of the evaluation"),
    ]
    notes = [f"{count} {name} {_rows(count)} {why}; see rejects.jsonl" for count, why in reasons if count]
    notes += [f"no row of {path} is among the {name} rows" for path in rows.without_rows]
    if rows.split:
        made, extra = sum(one.rows for one in rows.split), sum(one.extra_tokens for one in rows.split)
        why = f"split into {made}, one an answer, with {extra} tokens more (data.turns)"
        notes.append(f"{len(rows.split)} {name} {_rows(len(rows.split))} {why}")
    notes += [f"{count} {name} {_rows(count)} {DROPPED[kind]}" for kind, count in sorted(rows.dropped.items())]
    return summary, notes + unused_notes(name, rows.unused)


def _rows(count: int) -> str:
    return "row is" if count == 1 else "rows are"


def reject_lines(prepared: Prepared) -> str:
    """rejects.jsonl: each row that is left out or shortened, with its place and the reason; "" without any."""
    lines = []
    for name, rows in (("train", prepared.train), ("eval", prepared.eval)):
        if rows is None:
            continue
        for row in rows.overlong:
            reason = f"{row.tokens} tokens, longer than max_seq_length; {row.kept_tokens} of them are trained"
            lines.append({"split": name, "file": row.where.path, "line": row.where.line, "reason": reason})
        for where, first in rows.repeated:
            lines.append({"split": name, "file": where.path, "line": where.line, "reason": f"repeats {first}"})
        lines += [{"split": name, **reject_record(problem)} for problem in (*rows.rejected, *rows.leaked)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
