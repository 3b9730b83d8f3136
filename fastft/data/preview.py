"""The text of the arrays that are trained, token by token, and which tokens carry loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from fastft.data.encode import NO_LOSS, Encoded
from fastft.errors import Where

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A character has at most 4 bytes in UTF-8: more byte tokens are not a character.
LONGEST_CHARACTER_TOKENS = 4
UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """A readable piece of the row: its text, its tokens, and whether they carry loss.

    It is one token, or as many as one character needs.
    """

    text: str
    ids: tuple[int, ...]
    trained: bool


@dataclass(frozen=True)
class PreviewRow:
    """One row as it is trained. `dropped_tokens` counts what overlong handling left out of it.

    `verdict`: of preferences, whether the answer is "chosen" or "rejected"; "" elsewhere.
    """

    where: Where
    pieces: tuple[Piece, ...]
    tokens: int
    trained_tokens: int
    dropped_tokens: int = 0
    verdict: str = ""

    def marked(self) -> str:
        """The whole text with marks around the parts that carry loss, for output without colour."""
        text = ""
        for trained, pieces in groupby(self.pieces, key=attrgetter("trained")):
            part = "".join(piece.text for piece in pieces)
            text += f"⟦{part}⟧" if trained else part
        return text

    def as_json(self) -> dict[str, Any]:
        """The whole row for `--json`: place, counts, ids, labels and pieces."""
        ids = [token for piece in self.pieces for token in piece.ids]
        labels = [token if piece.trained else NO_LOSS for piece in self.pieces for token in piece.ids]
        counts = {"tokens": self.tokens, "trained_tokens": self.trained_tokens, "dropped_tokens": self.dropped_tokens}
        pieces = [asdict(piece) for piece in self.pieces]
        verdict = {"verdict": self.verdict} if self.verdict else {}
        return {"where": str(self.where), **verdict, **counts, "input_ids": ids, "labels": labels, "pieces": pieces}


def preview(row: Encoded, tokenizer: Tokenizer, dropped_tokens: int = 0) -> PreviewRow:
    """`row` in readable pieces."""
    pieces = tuple(_pieces(row, tokenizer))
    return PreviewRow(row.where, pieces, len(row.input_ids), row.trained_tokens, dropped_tokens)


def _pieces(row: Encoded, tokenizer: Tokenizer) -> Iterator[Piece]:
    # A piece is what decoding gains when its tokens follow the previous ones: decoders can drop a space at the start
    # of their input.
    before: list[int] = []
    waiting: list[int] = []
    trained = False
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if waiting and trained != (label != NO_LOSS):
            yield Piece(_gained(tokenizer, before, waiting), tuple(waiting), trained)
            before, waiting = waiting, []
        trained = label != NO_LOSS
        waiting.append(token)
        text = _gained(tokenizer, before, waiting)
        if text.endswith(UNFINISHED) and len(waiting) < LONGEST_CHARACTER_TOKENS:
            continue
        yield Piece(text, tuple(waiting), trained)
        before, waiting = waiting, []
    if waiting:
        yield Piece(_gained(tokenizer, before, waiting), tuple(waiting), trained)


def _gained(tokenizer: Tokenizer, before: list[int], added: list[int]) -> str:
    lead: str = tokenizer.decode(before, skip_special_tokens=False) if before else ""
    whole: str = tokenizer.decode([*before, *added], skip_special_tokens=False)
    return whole[len(lead) :]
