"""What a run found in its rows, for its page: an account in sentences, the lengths, the masks of the first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from fastft.console import redact
from fastft.data.encode import Encoded
from fastft.data.preview import preview
from fastft.data.rows import Rows
from fastft.data.tokenizer import TokenizerFacts

SHOWN_ROWS = 3
BINS = 24
# Letters of a part of a row: a row of 100,000 tokens would make the page as long.
LONGEST_PART = 1500


@dataclass(frozen=True)
class Account:
    """What happened to one set of rows: a sentence of counts, and a note for each reason to leave some out."""

    counts: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LengthBin:
    """How many training rows have at most `longest` tokens, and more than the bin before."""

    longest: int
    rows: int


@dataclass(frozen=True)
class Part:
    """A part of the text of a row, and whether its tokens carry loss."""

    text: str
    has_loss: bool


@dataclass(frozen=True)
class MaskedRow:
    """One row as it is trained."""

    where: str
    tokens: int
    trained_tokens: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class RowsSeen:
    """rows.json."""

    FILE: ClassVar[str] = "rows.json"
    SCHEMA: ClassVar[int] = 1

    accounts: tuple[Account, ...]
    lengths: tuple[LengthBin, ...]
    shown: tuple[MaskedRow, ...]


def rows_seen(
    accounts: Sequence[tuple[str, Sequence[str]]], train: Rows, tokenizer: TokenizerFacts, *, has_masks: bool
) -> RowsSeen:
    """The record of the rows of a run; without masks where labels are learnt instead of answers."""
    said = tuple(Account(redact(counts), tuple(map(redact, notes))) for counts, notes in accounts)
    first = [train[index] for index in range(min(SHOWN_ROWS, len(train)))] if has_masks else []
    shown = [_masked(text, tokenizer) for row in first for text in row.texts]
    return RowsSeen(said, length_bins(train.lengths), tuple(shown))


def _masked(row: Encoded, tokenizer: TokenizerFacts) -> MaskedRow:
    seen = preview(row, tokenizer.tokenizer)
    parts = []
    for has_loss, pieces in groupby(seen.pieces, key=lambda piece: piece.trained):
        text = "".join(piece.text for piece in pieces)
        left = f" … ({len(text) - LONGEST_PART:,} letters more)" if len(text) > LONGEST_PART else ""
        parts.append(Part(redact(text[:LONGEST_PART]) + left, has_loss))
    return MaskedRow(str(row.where), seen.tokens, seen.trained_tokens, tuple(parts))


def length_bins(lengths: Sequence[int]) -> tuple[LengthBin, ...]:
    """At most BINS bins of equal width, from 1 token to the longest row."""
    if not lengths:
        return ()
    width = -(-max(lengths) // BINS)
    counts = Counter((length - 1) // width for length in lengths)
    return tuple(LengthBin((place + 1) * width, counts[place]) for place in range(max(counts) + 1))
